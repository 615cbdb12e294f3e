"""From a YAML file and `--set` overrides to a `Config`, with errors a person can act on."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from requant.config import Config
from requant.errors import ConfigError


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read, override and validate a configuration.

    Args:
        path: A YAML file.
        overrides: `section.field=value` items; the value is read as YAML.

    Raises:
        ConfigError: Naming file, field, value and what was expected.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give a YAML file such as configs/tiny.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text ({error.reason}); give a YAML file") from error
    try:
        document = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(document, dict):
        held = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path}: holds {held}, expected a mapping of sections")
    for override in overrides:
        document = apply_override(document, override)
    config = parse_config(document, origin=str(path))
    if config.state.exists() and not config.state.is_dir():
        raise ConfigError(f"{path}: state: {config.state} is a file; give the path of a folder")
    return config


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML itself lets the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice; keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parse_config(document: Mapping[str, Any], origin: str) -> Config:
    """Validate a mapping as a `Config`.

    Raises:
        ConfigError: One line for each field that is wrong.
    """
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem, document)}" for problem in error.errors())
        raise ConfigError(f"{origin}: the configuration cannot work:\n{problems}") from error


def apply_override(document: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Return `document` with one `section.field=value` applied.

    Raises:
        ConfigError: Where the item has no `=`, no field, or passes through a value.
    """
    field, separator, text = override.partition("=")
    keys = field.split(".")
    if not separator or not all(keys):
        raise ConfigError(
            f"--set {override!r}: expected section.field=value, e.g. train_adapter.rank=8"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {error}") from error
    return _assign(document, keys, value, override)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `Config`, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _assign(document: Any, keys: list[str], value: Any, override: str) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise ConfigError(f"--set {override!r}: there is no field {keys[0]!r} inside {document!r}")
    head, *rest = keys
    if not rest:
        return {**document, head: value}
    inner = document.get(head)
    return {**document, head: _assign({} if inner is None else inner, rest, value, override)}


def _explain(problem: Any, document: Mapping[str, Any]) -> str:
    location = _without_tags(problem["loc"])
    field = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        valid = _field_names(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        return (
            f"{field}: unknown field (value {problem['input']!r}){hint} valid: {', '.join(valid)}"
        )
    if problem["type"] == "missing":
        return f"{field}: missing; it has no default, see configs/tiny.yaml"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not field:
        return message
    if isinstance(problem["input"], (dict, BaseModel)):
        return f"{field}: {message}"
    # An address may hold a password.
    given = re.sub(r"//[^/@]*@", "//***@", repr(problem["input"]))
    return f"{field}: got {given}. {message}"


def _without_tags(location: Iterable[Any]) -> list[Any]:
    """Drop what is not in the file: the `kind` by which pydantic names the branch of a union."""
    fields: list[Any] = []
    models: list[type[BaseModel]] = [Config]
    chosen = False
    for part in location:
        is_tag = not chosen and any(_kind(model) == part for model in models)
        if is_tag:
            models = [model for model in models if _kind(model) == part]
            chosen = True
            continue
        fields.append(part)
        models, chosen = _below(models, part), False
    return fields


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _field_names(location: list[Any]) -> list[str]:
    models: list[type[BaseModel]] = [Config]
    for part in location:
        models = _below(models, part)
    return sorted({name for model in models for name in model.model_fields})


def _below(models: list[type[BaseModel]], part: Any) -> list[type[BaseModel]]:
    return [
        inner
        for model in models
        if part in model.model_fields
        for inner in _models_in(model.model_fields[part].annotation)
    ]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
