"""Names that a configuration gives to things outside: of bounded length, of letters that are kept.

They go into addresses, paths, pages, keys of MLflow and the caches of libraries.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST = 200
"""Characters of a name; the longest of lm-eval's 14683 tasks has 86."""

TASK = rf"^[A-Za-z0-9_][A-Za-z0-9_.():+-]{{0,{LONGEST - 1}}}$"
REPOSITORY = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}$"
"""The hub's own rule, but for what `_checked_repository` refuses besides."""
REVISION = rf"^[A-Za-z0-9_][A-Za-z0-9_./+-]{{0,{LONGEST - 1}}}$"


def _checked_task(name: str) -> str:
    if not re.fullmatch(TASK, name):
        raise ValueError(
            f"expected the name of a task, of at most {LONGEST} letters, digits and _.():+-; "
            "`lm-eval ls tasks` prints the names"
        )
    return name


def _checked_repository(name: str) -> str:
    if not re.fullmatch(REPOSITORY, name) or re.search(r"--|\.\.|[.-](/|$)|\.git$", name):
        raise ValueError(
            "expected owner/name, each of at most 96 letters, digits and _.-, as the address of "
            "its page on the hub ends"
        )
    return name


def _checked_revision(name: str) -> str:
    if not re.fullmatch(REVISION, name) or ".." in name:
        raise ValueError(
            f"expected a branch, a tag or a commit, of at most {LONGEST} letters, digits and "
            "_./+-; for one of other letters give the commit it points to"
        )
    return name


def _one_line(name: str) -> str:
    if not name.isprintable() or len(name) > LONGEST:
        raise ValueError(
            f"expected a name of one line, of at most {LONGEST} characters, none of which controls "
            "a terminal; give it such a name where it stands"
        )
    return name


def each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse names that are given twice.

    Raises:
        ValueError: Naming them.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} more than once; name each once")
    return names


TaskName = Annotated[str, AfterValidator(_checked_task), Field(json_schema_extra={"pattern": TASK})]
"""Name of a task, lm-eval's or one that a night makes."""
TaskNames = Annotated[tuple[TaskName, ...], AfterValidator(each_once)]
Repository = Annotated[
    str, AfterValidator(_checked_repository), Field(json_schema_extra={"pattern": REPOSITORY})
]
"""owner/name on the Hugging Face hub."""
Revision = Annotated[
    str, AfterValidator(_checked_revision), Field(json_schema_extra={"pattern": REVISION})
]
"""Branch, tag or commit of one."""
Name = Annotated[
    str,
    AfterValidator(_one_line),
    Field(json_schema_extra={"maxLength": LONGEST}),
]
"""Name of a column, a split, an experiment: whatever others call it, on one line."""
