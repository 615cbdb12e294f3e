"""The small JSON files of a model folder, which travel into whatever is made of the model."""

from pathlib import Path

from requant.errors import ConfigError, RequantError
from requant.models.generation import generation_problems
from requant.models.own_code import OF_A_FOLDER, OF_A_NIGHT, own_code_problems, small_json
from requant.models.tokenizer import check_one_tokenizer
from requant.outside.json_text import read_json


def json_problems(folder: Path, way_out: str = OF_A_NIGHT) -> list[str]:
    """Say which of them are no JSON, one a line, or what is wrong with what they say.

    Args:
        folder: Of a model.
        way_out: What a person can do about the name of foreign code.
    """
    unreadable = []
    for path in small_json(folder):
        try:
            read_json(path)
        except RequantError as error:
            unreadable.append(str(error))
    if unreadable:
        return unreadable
    problems = [*own_code_problems(folder, way_out), *generation_problems(folder)]
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
