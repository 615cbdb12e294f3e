"""Pins: artifacts that somebody needs, by name. What serves and what may serve again is pinned."""

import re
from pathlib import Path
from typing import Literal

from requant.errors import ArtifactError
from requant.store.documents import read_sealed, write_sealed
from requant.store.layout import Store

Post = Literal["champion", "previous", "anchor"]
"""What a model is in its line: it serves, it served before that, or all later ones are held against
it however far they have come."""


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
    path = store.pin_path(f"{line}-{post}")
    return read_pin(store, path) if path.exists() else None


def pinned_digests(store: Store) -> set[str]:
    """Return the artifacts that somebody has pinned.

    Raises:
        ArtifactError: If a pin cannot be believed: what it kept might be deleted.
    """
    return {read_pin(store, path) for path in pin_files(store)}


def pin_files(store: Store) -> list[Path]:
    """List the files that pin artifacts."""
    return sorted(store.pins.glob("[!.]*"))


def read_pin(store: Store, path: Path) -> str:
    """Return the digest of the artifact that a file pins.

    Raises:
        ArtifactError: If it cannot be believed, or names no artifact.
    """
    digest = read_sealed(store, path)
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ArtifactError(
            f"{path}: names no artifact; promote the model anew (`requant promote CONFIG "
            "--version N`), or delete the file where nothing is to be kept"
        )
    return digest
