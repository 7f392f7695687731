"""A part of the configuration: checked, closed to unknown keys, and aware of which values change results."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10**9)]


def runtime(default: Any) -> Any:
    """A field that changes how fast a result comes or what is kept beside it, never the result.

    It stays out of `ConfigSection.settings`.
    """
    return Field(default, json_schema_extra={"runtime": True})


class ConfigSection(BaseModel):
    """A part of the configuration; a stage sees only its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def settings(self) -> dict[str, Any]:
        """Everything in the section that can change a result, as JSON values."""
        kept = {}
        for name, info in type(self).model_fields.items():
            if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("runtime"):
                continue
            value = getattr(self, name)
            kept[name] = (
                value.settings()
                if isinstance(value, ConfigSection)
                else self.model_dump(mode="json", include={name})[name]
            )
        return kept
