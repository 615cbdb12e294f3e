"""Somebody else's model folder as a configuration wants it read: without some fields."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requant.outside.files import refuse_links_out
from requant.outside.json_text import read_object


@contextmanager
def base_view(folder: Path, leave_out: Sequence[str]) -> Iterator[Path]:
    """Yield a folder of the same files, whose config.json lacks some fields.

    Args:
        folder: Model folder, or what is to be one.
        leave_out: Names of fields, wherever in config.json they stand; with none it is `folder`.

    Raises:
        ArtifactError: If a link leads out of the folder, or config.json is no JSON object.
    """
    if folder.is_dir():
        refuse_links_out(folder)
    if not leave_out or not (folder / "config.json").exists():
        yield folder
        return
    config = _without(read_object(folder / "config.json"), leave_out)
    with TemporaryDirectory(prefix="requant-base-") as name:
        view = Path(name)
        for path in folder.iterdir():
            if path.is_file() and path.name != "config.json":
                (view / path.name).symlink_to(path.resolve())
        (view / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        yield view


def _without(fields: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        name: _without(value, names) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in names
    }
