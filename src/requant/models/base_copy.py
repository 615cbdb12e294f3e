"""Somebody else's model folder copied: checked, and with what later stages read made whole."""

import json
from pathlib import Path

from requant.errors import ConfigError
from requant.execution.stage import StageContext
from requant.models.base_folder import inspect_base, missing_index
from requant.models.finite import check_base_weights
from requant.models.folder import INDEX_NAME
from requant.models.tokenizer import load_tokenizer
from requant.wording import few

COPY_BYTES = 16 << 20


def copy_model(
    folder: Path, context: StageContext, origin: str, *, zero_matrices: bool = False
) -> int:
    """Copy the files of `folder` that make a model, links by their content, after checking them.

    What later stages read and the folder lacks is made from what it has: the index of shards, and
    tokenizer.json from a sentencepiece or vocabulary file.

    Args:
        folder: Hugging Face folder, or a snapshot in the hub's cache.
        context: Its `out` gets the files.
        origin: The configuration field and its value, for the error's text.
        zero_matrices: Whether matrices of zeros alone are meant; they are named then.

    Returns:
        The parameters of the network, tied ones once.

    Raises:
        ConfigError: With every problem `check_base` finds, one a line, or if a weight is NaN or
            infinite, or a matrix all zeros.
    """
    found = inspect_base(folder, origin)
    if found.problems or found.files is None:
        raise ConfigError("\n".join(found.problems))
    for note in found.notes:
        context.reporter.message(note)
    zero = check_base_weights(origin, found.files.weights, zero_matrices=zero_matrices)
    if zero:
        context.reporter.message(f"{len(zero)} matrices hold nothing but zeros: {few(zero)}")
    files = found.files.taken
    whole = sum(path.stat().st_size for path in files)
    done = 0
    for path in files:
        with path.open("rb") as source, (context.out / path.name).open("wb") as target:
            while block := source.read(COPY_BYTES):
                target.write(block)
                done += len(block)
                context.reporter.progress(done >> 20, whole >> 20, "MiB copied")
    if (made := missing_index(found.files)) is not None:
        context.reporter.message(f"made {INDEX_NAME} from the headers of the shards")
        (context.out / INDEX_NAME).write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
    if not (context.out / "tokenizer.json").exists():
        context.reporter.message("made tokenizer.json from the tokenizer's older files")
        load_tokenizer(folder).backend_tokenizer.save(str(context.out / "tokenizer.json"))
    return found.parameters
