"""Somebody else's model folder as a configuration wants it read: without some fields."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from requant.models.small_files import read_small
from requant.outside.files import refuse_links_out


@contextmanager
def base_view(folder: Path, leave_out: Sequence[str]) -> Iterator[Path]:
    """Yield a folder of the same files, whose config.json and the like lack some fields.

    Args:
        folder: Model folder, or what is to be one.
        leave_out: Names of fields, wherever in a file they stand; with none it is `folder`.

    Raises:
        ArtifactError: If a link leads out of the folder.
    """
    if folder.is_dir():
        refuse_links_out(folder)
    if not leave_out or not (folder / "config.json").exists():
        yield folder
        return
    # What cannot be read stays as it is: the door tells of it.
    given, _ = read_small(folder)
    changed = {
        path.name: content
        for path, whole in given.items()
        if (content := _without(whole, leave_out)) != whole
    }
    with TemporaryDirectory(prefix="requant-base-") as name:
        view = Path(name)
        for path in folder.iterdir():
            if path.is_file() and path.name not in changed:
                (view / path.name).symlink_to(path.resolve())
        for file, content in changed.items():
            (view / file).write_text(json.dumps(content, indent=2) + "\n")
        yield view


def _without(content: Any, names: Sequence[str]) -> Any:
    if isinstance(content, list):
        return [_without(value, names) for value in content]
    if not isinstance(content, dict):
        return content
    return {name: _without(value, names) for name, value in content.items() if name not in names}
