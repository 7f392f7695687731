"""Base class of configuration sections: validated, no unknown keys, aware of which values change results."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]


def _check_odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that there is a middle slice")
    return value


Odd = Annotated[int, Field(ge=1), AfterValidator(_check_odd)]


def runtime(default: Any) -> Any:
    """A field that changes speed or additional outputs, never the result; `ConfigSection.settings` leaves it out."""
    return Field(default, json_schema_extra={"runtime": True})


class ConfigSection(BaseModel):
    """A section of the configuration; a stage sees only its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def settings(self) -> dict[str, Any]:
        """All values of the section that can change a result, as JSON values."""
        dumped, kept = self.model_dump(mode="json"), {}
        for name, info in type(self).model_fields.items():
            if not isinstance(info.json_schema_extra, dict) or not info.json_schema_extra.get("runtime"):
                value = getattr(self, name)
                kept[name] = value.settings() if isinstance(value, ConfigSection) else dumped[name]
        return kept
