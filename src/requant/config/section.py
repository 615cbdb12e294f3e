"""What all sections of the configuration have in common: frozen, every field with unit and range.

A section is also what enters the stage's key: a field marked `not_in_key` does not change the
bytes a stage produces (or is represented by the digest of the content it points to).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NOT_IN_KEY: dict[str, Any] = {"not_in_key": True}


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def key_fields(self) -> dict[str, Any]:
        """Return the part of this section that decides the bytes of the stage's artifact."""
        return _key_fields(self)


def _key_fields(section: BaseModel) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("not_in_key"):
            continue
        value = getattr(section, name)
        fields[name] = (
            _key_fields(value)
            if isinstance(value, BaseModel)
            else section.model_dump(mode="json", include={name})[name]
        )
    return fields


LocalPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""YAML and `--set` know no shell that would write out `~`."""
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Relative = Annotated[float, Field(gt=0.0)]
StoredDtype = Literal["original", "bfloat16", "float16", "float32"]
