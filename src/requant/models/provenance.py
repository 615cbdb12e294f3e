"""Which weights an artifact was made from, written into it: so that a pair can be proved later."""

from pathlib import Path

from requant.canonical import canonical_json, digest_of
from requant.errors import ContractError
from requant.models.folder import PROVENANCE_NAME
from requant.models.headers import weight_files
from requant.outside.json_text import read_object
from requant.store.manifest import MANIFEST_NAME, hash_file
from requant.store.objects import read_manifest
from requant.wording import printable


def weights_digest(folder: Path, *, hashed: bool = False) -> str:
    """Digest a model folder's weights: sha256 over name and sha256 of every file of them.

    An artifact's manifest holds the hashes already; other folders are read whole.

    Args:
        folder: Model folder.
        hashed: Whether the files are read even so: outside a store nobody has verified them.
    """
    manifest = folder / MANIFEST_NAME
    if manifest.exists() and not hashed:
        entries = read_manifest(folder).files
        hashes = {e.path: e.sha256 for e in entries if e.path.endswith(".safetensors")}
    else:
        hashes = {path.name: hash_file(path) for path in weight_files(folder)}
    return digest_of(hashes)


def write_provenance(folder: Path, **digests: str) -> None:
    """Write digests by role into an artifact, e.g. original=..., trained_on=..."""
    (folder / PROVENANCE_NAME).write_bytes(canonical_json(digests))


def read_provenance(folder: Path) -> dict[str, str]:
    """Read what `write_provenance` wrote; empty where nothing is recorded."""
    path = folder / PROVENANCE_NAME
    found = read_object(path) if path.exists() else {}
    return {role: str(digest) for role, digest in found.items()}


def check_provenance(folder: Path, **digests: str) -> None:
    """Refuse an artifact that was made from other weights.

    Args:
        folder: What was made.
        digests: Role to the digest it should have been made from. Roles the record lacks pass.

    Raises:
        ContractError: Naming the role and both digests.
    """
    recorded = read_provenance(folder)
    for role, digest in digests.items():
        if role in recorded and recorded[role] != digest:
            raise ContractError(
                f"{folder}: was made from another {role.replace('_', ' ')} (weights "
                f"{printable(recorded[role][:12])}, here {digest[:12]}); merge it into the model "
                "it was trained for, or train it again on this one"
            )
