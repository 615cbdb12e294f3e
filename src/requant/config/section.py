"""What all sections of the configuration have in common: frozen, every field with unit and range.

A section is also what enters the stage's key: a field marked `not_in_key` does not change the
bytes a stage produces (or is represented by the digest of the content it points to).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from requant.config.plain_secrets import text_fault

NOT_IN_KEY: dict[str, Any] = {"not_in_key": True}

NOT_IN_KEY_WHERE_NULL: dict[str, Any] = {"not_in_key_where_null": True}
"""Marks a field that came later, and that changes no byte while it is null: keys of before hold."""

MAY_HOLD_SECRET: dict[str, Any] = {"may_hold_secret": True}
"""Marks a field into which somebody may write a password: no error shows what it holds, and MLflow
gets no copy."""


def in_clear(fault: str) -> str:
    """Say the way out for a field that nobody expects a secret in, and that holds one."""
    return (
        f"{fault}, and Prefect and MLflow keep this field in clear; take it out. Fields that need "
        "a secret name it, such as deploy.action.token: env:NAME"
    )


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys, NaN and infinity."""

    # Pydantic would put what it was given into the text of its errors, which others print.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*")
    @classmethod
    def _holds_no_secret_in_clear(cls, value: Any, info: ValidationInfo) -> Any:
        # Marked fields say themselves what is a secret in them.
        if not has_mark(cls.model_fields[str(info.field_name)], MAY_HOLD_SECRET):
            for text in value if isinstance(value, tuple) else (value,):
                # A path has lost a slash of https://.
                words = str(text).replace(":/", "://") if isinstance(text, Path) else text
                fault = text_fault(words) if isinstance(words, str) else None
                if fault is not None:
                    raise ValueError(in_clear(fault))
        return value

    def key_fields(self) -> dict[str, Any]:
        """Return the part of this section that decides the bytes of the stage's artifact."""
        return _fields_without(self, NOT_IN_KEY)

    def open_fields(self) -> dict[str, Any]:
        """Return this section without the fields that may hold a secret."""
        return _fields_without(self, MAY_HOLD_SECRET)


def has_mark(info: FieldInfo, mark: dict[str, Any]) -> bool:
    """Tell whether a field was declared with one of the marks above."""
    extra = info.json_schema_extra
    return isinstance(extra, dict) and mark.items() <= extra.items()


def _fields_without(section: BaseModel, mark: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        if has_mark(info, mark):
            continue
        value = getattr(section, name)
        if mark is NOT_IN_KEY and value is None and has_mark(info, NOT_IN_KEY_WHERE_NULL):
            continue
        if isinstance(value, BaseModel):
            fields[name] = _fields_without(value, mark)
        elif isinstance(value, tuple) and all(isinstance(item, BaseModel) for item in value):
            fields[name] = [_fields_without(item, mark) for item in value]
        else:
            fields[name] = section.model_dump(mode="json", include={name})[name]
    return fields


def _local(path: Path) -> Path:
    """Write out `~`, as YAML and `--set` know no shell; refuse what no file system has."""
    if "\0" in str(path) or any(len(part.encode()) > 255 for part in path.parts):
        raise ValueError("is no path: a part of it has a NUL, or more than 255 bytes")
    return path.expanduser()


def _not_empty(path: Any) -> Any:
    """Refuse "", which `Path` takes for the folder a command is started in."""
    if path == "":
        raise ValueError("expected a path that is not empty; a command's own folder is written .")
    return path


LocalPath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(_local)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Relative = Annotated[float, Field(gt=0.0)]
StoredDtype = Literal["original", "bfloat16", "float16", "float32"]
