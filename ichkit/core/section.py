"""Base class of configuration sections: validated, no unknown keys, aware of which values change results."""

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

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


def _types_of(annotation: Any) -> tuple[Any, ...]:
    return (annotation, *(kind for part in get_args(annotation) for kind in _types_of(part)))


class ConfigSection(BaseModel):
    """A section of the configuration; a stage sees only its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_true_as_a_number(cls, value: object, info: ValidationInfo) -> object:
        """The value; true and false only where they are meant, since they would count as 1 and 0."""
        types = _types_of(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and bool not in types:
            raise ValueError("expected a value, not true or false")
        return value

    def settings(self) -> dict[str, Any]:
        """All values of the section that can change a result, as JSON values."""
        dumped, kept = self.model_dump(mode="json"), {}
        for name, info in type(self).model_fields.items():
            if not isinstance(info.json_schema_extra, dict) or not info.json_schema_extra.get("runtime"):
                value = getattr(self, name)
                kept[name] = value.settings() if isinstance(value, ConfigSection) else dumped[name]
        return kept
