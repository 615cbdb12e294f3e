"""The shipped configurations teach: their comments say what each knob may be."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from requant.config import Config

CONFIGS = Path(__file__).parents[2] / "configs"


def knobs(path: Path) -> list[tuple[list[str], str]]:
    """Path and comment of every line that gives a field a value."""
    found: list[tuple[list[str], str]] = []
    parents: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        text, _, comment = line.partition("#")
        key, colon, value = text.strip().partition(":")
        if not colon:
            continue
        depth = len(line) - len(line.lstrip())
        parents = [parent for parent in parents if parent[0] < depth]
        if value.strip():
            found.append(([*(name for _, name in parents), key], comment))
        else:
            parents.append((depth, key))
    return found


def choices(fields: list[str]) -> tuple[Any, ...]:
    """What a field may be, where it is one of a few words."""
    models: list[Any] = [Config]
    for name in fields[:-1]:
        models = [
            inner
            for model in models
            if name in model.model_fields
            for inner in models_in(model.model_fields[name].annotation)
        ]
    annotations = [
        m.model_fields[fields[-1]].annotation for m in models if fields[-1] in m.model_fields
    ]
    return tuple(word for found in annotations for word in words_in(found))


def models_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def words_in(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for argument in get_args(annotation) for word in words_in(argument)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_comment_names_every_choice_of_its_knob(path: Path) -> None:
    silent = {
        ".".join(fields): missing
        for fields, comment in knobs(path)
        if (missing := set(choices(fields)) - set(re.findall(r"[\w-]+", comment)))
    }
    assert not silent


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_knob_has_a_comment_where_its_name_first_stands(path: Path) -> None:
    # What a switch does is said by its section; what the line is called, by the file's first lines.
    explained = {"enabled", "name"}
    silent = []
    for fields, comment in knobs(path):
        if comment.strip():
            explained.add(fields[-1])
        elif fields[-1] not in explained:
            silent.append(".".join(fields))
    assert not silent
