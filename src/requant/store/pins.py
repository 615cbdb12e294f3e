"""Pins: artifacts that somebody needs, by name. What serves and what may serve again is pinned."""

import re
from pathlib import Path
from typing import Literal, get_args

from requant.errors import ArtifactError
from requant.store.documents import read_sealed, write_sealed
from requant.store.layout import Store
from requant.wording import printable

Post = Literal["champion", "previous", "anchor"]
"""What a model is in its line: it serves, it served before that, or all later ones are held against
it however far they have come."""


POSTS: tuple[Post, ...] = get_args(Post)

REMOVE = "remove the file, and `requant gc` may take what it kept"
ANEW = "`requant promote CONFIG --version N`, N being the version that serves, pins it anew"
WAYS_OUT = {
    "champion": f"{ANEW}; where none is to serve, {REMOVE}",
    "previous": f"{ANEW}; where none served before that one, {REMOVE}",
    "anchor": f"put it back from a copy, or {REMOVE}: the next promotion makes what serves then "
    "the anchor, which later models are held against",
}
"""For a pin that cannot be believed, by its post."""


def pin(store: Store, line: str, post: Post, digest: str) -> None:
    """Keep a model, and what it was made from, from every collection.

    Args:
        store: The store.
        line: Of the model.
        post: A new holder of the same post takes the place of the old one.
        digest: The artifact.
    """
    write_sealed(store, store.pin_path(f"{line}-{post}"), digest)


def holder(store: Store, line: str, post: Post) -> str | None:
    """Return the digest of the model that holds a post in a line; None where none does.

    Raises:
        ArtifactError: As `read_pin`.
    """
    try:
        return read_pin(store, store.pin_path(f"{line}-{post}"))
    except FileNotFoundError:
        return None


def is_broken(store: Store, line: str, post: Post) -> bool:
    """Tell whether a pin is there and cannot be believed."""
    try:
        holder(store, line, post)
    except ArtifactError:
        return True
    return False


def read_pins(store: Store) -> tuple[dict[Path, str], list[str]]:
    """Return the artifact that each pin names, and why others cannot be believed, with a way out.

    What a pin that cannot be believed has kept nobody knows.
    """
    found, reasons = {}, []
    for path in pin_files(store):
        try:
            found[path] = read_pin(store, path)
        except FileNotFoundError:
            # Whoever removed it beside this one is right.
            continue
        except ArtifactError as error:
            reasons.append(str(error))
    return found, reasons


def pin_files(store: Store) -> list[Path]:
    """List the files that pin artifacts."""
    return sorted(store.pins.glob("[!.]*"))


def read_pin(store: Store, path: Path) -> str:
    """Return the digest of the artifact that a file pins.

    Raises:
        FileNotFoundError: If there is none.
        ArtifactError: If it cannot be believed, or names no artifact, with the way out.
    """
    _, _, post = path.name.rpartition("-")
    way_out = WAYS_OUT.get(post, f"it is the pin of nothing requant knows: {REMOVE}")
    try:
        digest = read_sealed(store, path)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {way_out}") from error
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ArtifactError(f"{printable(path)}: names no artifact; {way_out}")
    return digest
