"""The small JSON files of a model folder, which travel into whatever is made of the model."""

from pathlib import Path
from typing import Any

from requant.errors import ConfigError, RequantError
from requant.models.folder import ADAPTER_CONFIG_NAME, INDEX_NAME
from requant.models.generation import generation_problems
from requant.models.own_code import OF_A_FOLDER, OF_A_NIGHT, own_code_problems
from requant.models.tokenizer import check_one_tokenizer
from requant.outside.json_text import read_json
from requant.store.manifest import MANIFEST_NAME

NOT_SMALL = frozenset(
    {
        *("tokenizer.json", "tekken.json", "vocab.json"),
        *(INDEX_NAME, MANIFEST_NAME, ADAPTER_CONFIG_NAME),
    }
)
"""JSON of any size, in which names are tokens and tensors, and what is not the model's."""


def read_small(folder: Path) -> tuple[dict[Path, Any], list[str]]:
    """Read the JSON files of a model's folder that configure the model.

    Returns:
        What each says, by name, and why others cannot be read, one a line.
    """
    files: dict[Path, Any] = {}
    unreadable = []
    for path in sorted(folder.glob("[!.]*.json")):
        if path.is_file() and path.name not in NOT_SMALL:
            try:
                files[path] = read_json(path)
            except RequantError as error:
                unreadable.append(str(error))
    return files, unreadable


def json_problems(folder: Path, way_out: str = OF_A_NIGHT) -> list[str]:
    """Say which of them are no JSON, one a line, or what is wrong with what they say.

    Args:
        folder: Of a model.
        way_out: What a person can do about the name of foreign code.
    """
    files, unreadable = read_small(folder)
    if unreadable:
        return unreadable
    problems = [*own_code_problems(files, way_out), *generation_problems(folder)]
    try:
        check_one_tokenizer(folder)
    except RequantError as error:
        problems.append(str(error))
    return problems


def refuse_small_files(folder: Path) -> None:
    """Refuse a model folder whose small files may not travel into a copy of it.

    Raises:
        ConfigError: Naming files and fields, one a line.
    """
    if problems := json_problems(folder, OF_A_FOLDER):
        raise ConfigError("\n".join(problems))
