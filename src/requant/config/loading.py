"""From a YAML file and `--set` overrides to a `Config`, with errors a person can act on."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from requant.config import Config
from requant.config.plain_secrets import text_fault
from requant.config.section import MAY_HOLD_SECRET, has_mark, in_clear
from requant.errors import ArtifactError, ConfigError
from requant.expected import expected, kind_of
from requant.outside.files import read_plain
from requant.outside.yaml_text import MAX_CHARACTERS, MAX_DEPTH, MalformedYaml, parse_yaml
from requant.wording import shown

QUOTE = "'"


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read, override and validate a configuration.

    Args:
        path: A YAML file.
        overrides: `section.field=value` items; the value is read as YAML.

    Raises:
        ConfigError: Naming file, field, value and what was expected.
    """
    try:
        text = read_plain(path, MAX_CHARACTERS).decode()
    except ArtifactError as error:
        raise ConfigError(f"{error}; expected a YAML file such as configs/tiny.yaml") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text ({error.reason}); give a YAML file") from error
    try:
        document = parse_yaml(text)
    except MalformedYaml as error:
        # What it came from shows the line, which may hold a secret.
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(document, dict):
        held = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"{path}: holds {held}, expected a mapping of sections")
    for override in overrides:
        document = apply_override(document, override)
    config = parse_config(document, origin=str(path))
    if config.state.exists() and not config.state.is_dir():
        raise ConfigError(f"{path}: state: {config.state} is a file; give the path of a folder")
    return config


def parse_config(document: Mapping[str, Any], origin: str) -> Config:
    """Validate a mapping as a `Config`.

    Raises:
        ConfigError: One line for each field that is wrong.
    """
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        found = [problem for problem in error.errors() if not _is_echo(problem)]
        lines = dict.fromkeys(_explain(problem, document) for problem in found)
        problems = "\n".join(f"  {line}" for line in lines)
        # Pydantic's own text holds the names, which may be no names.
        raise ConfigError(f"{origin}: the configuration cannot work:\n{problems}") from None


def given_config(given: Config | Mapping[str, Any]) -> Config:
    """Return the configuration a flow was given: by a command as it is, by a server as JSON.

    Prefect's own check would log everything it was given, secrets included.

    Raises:
        ConfigError: As `parse_config`.
    """
    return given if isinstance(given, Config) else parse_config(given, "the parameter config")


def given_name(given: Config | Mapping[str, Any]) -> str:
    """Return the name in what a flow was given, also where the rest of it cannot work."""
    if isinstance(given, Config):
        return given.name
    name = given.get("name") if isinstance(given, Mapping) else None
    return _name(name) if isinstance(name, str) else "(no name)"


def apply_override(document: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Return `document` with one `section.field=value` applied.

    Raises:
        ConfigError: Where the item has no `=`, no field, or passes through a value; its text holds
            no value, which may be a secret.
    """
    field, separator, text = override.partition("=")
    keys = field.split(".")
    if not separator or not all(keys) or len(keys) > MAX_DEPTH:
        raise ConfigError(
            f"--set {_name(field)}: expected section.field=value, e.g. train_adapter.rank=8"
        )
    try:
        value = parse_yaml(text)
    except MalformedYaml as error:
        raise ConfigError(f"--set {_name(field)}: the value is not YAML: {error}") from None
    return _assign(document, keys, value, f"--set {_name(field)}")


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `Config`, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def _assign(document: Any, keys: list[str], value: Any, what: str) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        raise ConfigError(f"{what}: there is no field {_name(keys[0])} inside {kind_of(document)}")
    head, *rest = keys
    if not rest:
        return {**document, head: value}
    inner = document.get(head)
    return {**document, head: _assign({} if inner is None else inner, rest, value, what)}


def _name(part: Any) -> str:
    """Write the name of a field; what can be none is not shown: a line may have lost its colon."""
    text = str(part)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,59}|[0-9]{1,9}", text) and not text_fault(text):
        return text
    return f"(a name of {len(text)} characters)"


def _is_echo(problem: Any) -> bool:
    """Tell whether a list is called too short for an item of it that was refused, and told of."""
    given = problem["input"]
    return (
        problem["type"] == "too_short"
        and isinstance(given, (list, tuple))
        and len(given) >= problem["ctx"]["min_length"]
    )


def _explain(problem: Any, document: Mapping[str, Any]) -> str:
    location, models, kinds, secret = _located(problem["loc"])
    field = ".".join(map(_name, location))
    if problem["type"] == "extra_forbidden":
        owners = [str(_kind(model)) for model in kinds if location[-1] in model.model_fields]
        if owners:
            return _of_other_kind(location[:-1], owners, models[0], document)
        return f"{field}: {_unknown(str(location[-1]), models)}"
    if problem["type"] == "missing":
        return f"{field}: missing; it has no default, see configs/tiny.yaml"
    given, message = problem["input"], expected(problem)
    # Also where another check was first to refuse it, and would repeat it.
    fault = None if secret or _is_section(given) else text_fault(f"{given} {message}")
    if fault is not None:
        return f"{field}: {in_clear(fault)}"
    if problem["type"] == "union_tag_invalid":
        field, given = f"{field}.kind", problem["ctx"]["tag"]
    if problem["type"] == "tuple_type":
        message += _items(models, location[-1], given, secret=secret)
    if problem["type"] == "value_error" and (secret or not field or _is_section(given)):
        hidden = " (the value is not shown: it may hold a secret)" if secret else ""
        return f"{field}: {message}{hidden}".removeprefix(": ")
    if message.startswith("expected"):
        message = f"E{message[1:]}"
    if secret and not _is_section(given):
        message += " (the value is not shown: it may hold a secret)"
    said = kind_of(given) if secret or given is None or _is_section(given) else shown(given)
    return f"{field}: got {said}. {message}"


def _is_section(value: Any) -> bool:
    return isinstance(value, (dict, BaseModel))


def _items(models: list[type[BaseModel]], name: Any, given: Any, *, secret: bool) -> str:
    """Say what a list is of, and how the one value that was given is written as a list."""
    annotations = str([model.model_fields[name].annotation for model in models])
    of = "numbers" if "float" in annotations else "strings"
    if secret or not isinstance(given, (str, int, float)):
        return f" of {of}, such as [a, b]" if of == "strings" else f" of {of}, such as [1.0]"
    return f" of {of}, such as [{shown(given).strip(QUOTE)}]"


def _unknown(name: str, models: list[type[BaseModel]]) -> str:
    # Its value is not shown: nobody knows what it holds.
    valid = _field_names(models)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown field{hint} valid: {', '.join(valid)}"


def _of_other_kind(
    location: list[Any], owners: list[str], chosen: type[BaseModel], document: Mapping[str, Any]
) -> str:
    """Say of all fields at once that they were written for another kind."""
    kind, section = _kind(chosen), ".".join(map(str, location))
    given: Any = document
    for part in location:
        given = given[part]
    foreign = ", ".join(_name(name) for name in given if name not in chosen.model_fields)
    needed = "".join(
        f", {name}: ..."
        for name, info in chosen.model_fields.items()
        if info.is_required() and name != "kind"
    )
    return (
        f"{section}: {foreign}: of kind {' or '.join(owners)}, and kind is {kind!r}; valid: "
        f"{', '.join(_field_names([chosen]))}. --set 'section.kind=...' keeps the other fields: "
        f"give the section anew, --set '{section}={{kind: {kind}{needed}}}'"
    )


def _located(
    location: Iterable[Any],
) -> tuple[list[Any], list[type[BaseModel]], list[type[BaseModel]], bool]:
    """Follow pydantic's location through the configuration.

    Returns:
        The fields, without what is not in the file: the `kind` by which pydantic names the branch
        of a union; the sections the last field is looked for in; those of the other kinds; whether
        a field on the way, or one below the last, may hold a secret.
    """
    secret = False
    fields: list[Any] = []
    models: list[type[BaseModel]] = [Config]
    holders, others = models, list[type[BaseModel]]()
    chosen = False
    for part in location:
        if not chosen and any(_kind(model) == part for model in models):
            others = [model for model in models if _kind(model) != part]
            models = [model for model in models if _kind(model) == part]
            chosen = True
            continue
        fields.append(part)
        if isinstance(part, int):
            continue  # an item of a list is one of the sections that the list holds
        secret |= any(_is_secret(model, part) for model in models)
        holders, others = models, others if chosen else []
        models, chosen = _below(models, part), False
    return fields, holders, others, secret


def _is_secret(model: type[BaseModel], name: Any) -> bool:
    """Tell whether a field may hold a secret, or one below it: a text may stand for a section."""
    info = model.model_fields.get(name)
    return info is not None and (
        has_mark(info, MAY_HOLD_SECRET)
        or any(
            _is_secret(inner, below)
            for inner in _models_in(info.annotation)
            for below in inner.model_fields
        )
    )


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field else None


def _field_names(models: list[type[BaseModel]]) -> list[str]:
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
