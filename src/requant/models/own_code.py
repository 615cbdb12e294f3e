"""Fields by which a model's folder names Python code of its own, for whoever loads the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from requant.config.base import OwnCode
from requant.errors import RequantError
from requant.models.folder import ADAPTER_CONFIG_NAME, INDEX_NAME
from requant.outside.json_text import read_json
from requant.store.manifest import MANIFEST_NAME
from requant.wording import shown

OWN_CODE: OwnCode = "auto_map"
"""Names classes in a Python file of the folder, or of another repository of the hub."""
OF_A_NIGHT = f"remove the field, or name {OWN_CODE} in prepare_base.leave_out"
OF_A_FOLDER = "give a copy of the folder without the field"
"""Ways out of a night, and of a command that has no configuration."""
NOT_SMALL = frozenset(
    {
        *("tokenizer.json", "tekken.json", "vocab.json"),
        *(INDEX_NAME, MANIFEST_NAME, ADAPTER_CONFIG_NAME),
    }
)
"""JSON of any size, in which names are tokens and tensors, and what is not the model's."""


def small_json(folder: Path) -> list[Path]:
    """List the JSON files of a model's folder that configure the model, by name."""
    return sorted(
        path for path in folder.glob("[!.]*.json") if path.is_file() and path.name not in NOT_SMALL
    )


def readable(path: Path) -> Any:
    """Return what a JSON file holds; None where it cannot be read, of which others tell."""
    try:
        return read_json(path)
    except RequantError:
        return None


def own_code_problems(folder: Path, way_out: str = OF_A_NIGHT) -> list[str]:
    """Say which fields name code of the model's own, one a line.

    requant runs none of it. But the files travel into the 4-bit model, and who serves that with
    `trust_remote_code` would run it.

    Args:
        folder: Of a model.
        way_out: What a person can do, which ends each line.
    """
    return [
        f"{path}: {field}={shown(value)} names Python code of the model's own, which requant does "
        f"not run and whoever serves the result with trust_remote_code would; {way_out}"
        for path in small_json(folder)
        for field, value in _own_code(readable(path))
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
