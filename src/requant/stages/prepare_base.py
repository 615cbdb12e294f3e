"""prepare_base: the 16-bit original, trained here, copied from a folder or fetched from the hub."""

from pathlib import Path

from requant.canonical import digest_of
from requant.config.base import FolderBase, HubBase, PrepareBase, StdlibBase
from requant.corpus import corpus_digest
from requant.execution.stage import Metrics, Stage, StageContext
from requant.figures import worded
from requant.models.base_copy import copy_model
from requant.models.base_folder import (
    MODEL_FILES,
    OTHER_FORMATS,
    select_files,
)
from requant.models.base_view import base_view
from requant.models.folder import CARD_NAME
from requant.models.origin import origin_of, write_origin
from requant.store.manifest import hash_file


def execute(section: PrepareBase, context: StageContext) -> Metrics:
    """Write the base into `context.out` as an ordinary Hugging Face folder.

    Returns:
        parameters; for stdlib also loss, tokens and epochs.

    Raises:
        ConfigError: If the repository is unknown, or for what `check_base` finds in the folder.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibBase):
        from requant.training.pretrain import train_on_stdlib

        return train_on_stdlib(source, context)
    if isinstance(source, FolderBase):
        folder, origin = source.path, f"prepare_base.source.path: {source.path}"
    else:
        folder, origin = fetch_model(source), f"prepare_base.source.repo: {source.repo}"
    if section.leave_out:
        context.reporter.message(f"left out of its JSON files: {', '.join(section.leave_out)}")
    allowed = section.zero_matrices == "allow"
    with base_view(folder, section.leave_out) as view:
        parameters = copy_model(view, context, origin, zero_matrices=allowed)
    write_origin(context.out, _origin(source, folder))
    return {"parameters": float(parameters)}


def _origin(source: FolderBase | HubBase, folder: Path) -> dict[str, str]:
    if isinstance(source, FolderBase):
        return origin_of(folder)
    # A snapshot's folder has its commit's name.
    return {**origin_of(folder), "repo": source.repo, "revision": folder.name}


def fetch_model(source: HubBase) -> Path:
    """Download a repository's model files at the commit its revision resolves to.

    Raises:
        ConfigError, TransientError: As `requant.hub.fetch`.
    """
    from requant.hub import fetch

    # Subfolders hold other formats of the same weights (onnx/, original/), as some files do.
    return fetch(
        source.repo,
        source.revision,
        "model",
        "prepare_base.source",
        allow=[*MODEL_FILES, CARD_NAME],
        ignore=["*/*", *OTHER_FORMATS],
    )


def content_digests(section: PrepareBase) -> dict[str, str]:
    """Return role -> digest of what the source points to outside the configuration.

    Raises:
        ConfigError: If the folder or repository cannot be a base.
        TransientError: If the hub cannot be reached.
    """
    source = section.source
    if isinstance(source, StdlibBase):
        return {"corpus": corpus_digest()}
    if isinstance(source, FolderBase):
        with base_view(source.path, section.leave_out) as view:
            files = select_files(view, f"prepare_base.source.path: {source.path}")
            hashes = {path.name: hash_file(path) for path in files.taken}
        return {"folder": digest_of(hashes), "origin": digest_of(origin_of(source.path))}
    from requant.hub import resolve_commit

    commit = resolve_commit(source.repo, source.revision, "model", "prepare_base.source")
    left_out = {"left_out": digest_of(sorted(section.leave_out))} if section.leave_out else {}
    return {"commit": commit, "files": digest_of([*MODEL_FILES, CARD_NAME]), **left_out}


STAGE = Stage(
    name="prepare_base",
    version=2,
    kind="model",
    libraries=("torch", "transformers", "tokenizers", "safetensors"),
    execute=execute,
    content_digests=content_digests,
    artifact="base",
    headline=(worded("loss {}, {} parameters", "loss", "parameters"),),
)
