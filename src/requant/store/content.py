"""The content of artifacts: the only ways to it, so that a store elsewhere can take this place."""

from pathlib import Path

from requant.errors import ArtifactError
from requant.store.layout import Store
from requant.store.whereabouts import whereabouts


def holds(store: Store, digest: str) -> bool:
    """Tell whether an artifact's folder is here; its bytes are not looked at."""
    return store.object_path(digest).is_dir()


def materialise(store: Store, digest: str) -> Path:
    """Return a folder of this machine with the files of an artifact; nobody may write into it.

    Raises:
        ArtifactError: If the store does not hold it, with what is known of it.
    """
    if not holds(store, digest):
        raise ArtifactError(whereabouts(store, digest))
    return store.object_path(digest)


def read_file(store: Store, digest: str, name: str) -> bytes:
    """Return one file of an artifact.

    Raises:
        ArtifactError: If the store does not hold the artifact, or the artifact no such file.
    """
    path = materialise(store, digest) / name
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"artifact {digest[:12]}: has no file {name}") from error
