"""Fields by which a model's folder names Python code of its own, for whoever loads the model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from requant.config.base import OwnCode
from requant.wording import shown

OWN_CODE: OwnCode = "auto_map"
"""Names classes in a Python file of the folder, or of another repository of the hub."""
OF_A_NIGHT = f"remove the field, or name {OWN_CODE} in prepare_base.leave_out"
OF_A_FOLDER = "give a copy of the folder without the field"
"""Ways out of a night, and of a command that has no configuration."""


def own_code_problems(files: Mapping[Path, Any], way_out: str) -> list[str]:
    """Say which fields name code of the model's own, one a line.

    requant runs none of it. But the files travel into the 4-bit model, and who serves that with
    `trust_remote_code` would run it.

    Args:
        files: What the small JSON files of a model say.
        way_out: What a person can do, which ends each line.
    """
    return [
        f"{path}: {field}={shown(value)} names Python code of the model's own, which requant does "
        f"not run and whoever serves the result with trust_remote_code would; {way_out}"
        for path, content in files.items()
        for field, value in _own_code(content)
    ]


def _own_code(content: Any) -> Iterator[tuple[str, Any]]:
    """Go through the fields of that name that say something, in the parts of a model too."""
    if isinstance(content, dict):
        if content.get(OWN_CODE):
            yield OWN_CODE, content[OWN_CODE]
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from _own_code(value)
