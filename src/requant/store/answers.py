"""What models have answered, kept for other nights: nothing is lost with it but time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.canonical import digest_of
from requant.errors import ArtifactError
from requant.store.content import materialise
from requant.store.documents import read_sealed, write_sealed
from requant.store.layout import Store
from requant.store.objects import discard, publish, verify

KIND = "answers"


@dataclass(frozen=True)
class Kept:
    """A note in the state folder of where a model's answers are."""

    of: Mapping[str, Any]
    """What decides them; `inputs` holds the digests of what was asked, by role."""
    digest: str
    """Of the artifact that holds them."""


def find_answers(store: Store, of: Mapping[str, Any]) -> Path | None:
    """Return the verified folder of a model's answers, or None where there is none to believe.

    Args:
        store: Where they are kept.
        of: All that decides them.
    """
    path = store.answers_path(digest_of(dict(of)))
    try:
        kept = read_kept(store, path)
        verify(store, store.ref(KIND, kept.digest))
    except (FileNotFoundError, ArtifactError):
        return None
    return materialise(store, kept.digest)


def keep_answers(store: Store, of: Mapping[str, Any], folder: Path) -> None:
    """Publish a folder of answers; what was kept before is deleted.

    Args:
        store: Where to; the caller holds `answers_lock`.
        of: All that decides them.
        folder: Below `store.tmp`. Consumed. No other model's has the same bytes.
    """
    path = store.answers_path(digest_of(dict(of)))
    try:
        before = store.object_path(read_kept(store, path).digest)
    except (FileNotFoundError, ArtifactError):
        before = None
    ref = publish(store, KIND, folder)
    write_sealed(store, path, {"of": dict(of), "digest": ref.digest})
    if before is not None and before.exists() and before.name != ref.digest:
        discard(store, before)


def answers_lock(store: Store) -> Path:
    """Held by who reads answers, or writes them."""
    return store.lock_path("answers")


def read_kept(store: Store, path: Path) -> Kept:
    """Read one note.

    Raises:
        FileNotFoundError: If there is none.
        ArtifactError: If it cannot be believed, with the way out.
    """
    way_out = "remove it: the models are asked anew"
    try:
        content = read_sealed(store, path)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; {way_out}") from error
    known = isinstance(content, dict) and content.keys() == {"of", "digest"}
    if not known or store.answers_path(digest_of(content["of"])) != path:
        raise ArtifactError(f"{path}: is no note of answers; {way_out}")
    return Kept(**content)


def answer_notes(store: Store) -> list[Path]:
    """List the notes."""
    return sorted(store.answers_path("x").parent.glob("[!.]*"))
