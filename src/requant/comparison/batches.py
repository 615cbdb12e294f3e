"""Text that models are measured on, encoded: held-out rows, old text, a file of a person's own."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.config.data import Columns
from requant.config.task_names import OLD_PERPLEXITY
from requant.data.artifact import task_documents
from requant.data.chat_template import Rules, read_rules
from requant.data.files import read_row_file
from requant.data.formats import Row
from requant.data.plain_text import chunks
from requant.data.samples import encode_rows, placed, read_rows
from requant.errors import ConfigError, ContractError
from requant.models.tokenizer import chat_template, load_tokenizer
from requant.outside.tokenizer_patterns import naming_patterns

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", "torch.Tensor"]
"""input_ids and labels, both int64 [1, tokens]."""

FIDELITY_TOKENS = 256
"""Per assistant turn or piece of text; with their number it bounds the log-probabilities in
memory."""


def batches_for(model: Path, heldout: Path, rows: int) -> list[Batch]:
    """Encode up to `rows` assistant turns of held-out text with a model's tokenizer."""
    return held_out_batches(
        load_tokenizer(model), placed(heldout, rows), FIDELITY_TOKENS, read_rules(heldout.parent)
    )[:rows]


def old_batches(model: Path, data: Path, documents: int) -> list[Batch]:
    """Encode the first documents of the old text a dataset artifact carries."""
    path = task_documents(data, OLD_PERPLEXITY)
    texts = [row["text"] for row in read_rows(path, documents)]
    return text_batches(load_tokenizer(model), texts, FIDELITY_TOKENS)


def file_batches(model: Path, path: Path | None, sequences: int) -> list[Batch]:
    """Encode text with a model's tokenizer.

    Args:
        model: Model folder.
        path: .jsonl of rows in any format of `requant.data.formats` (assistant turns, or all of a
            plain text, carry loss); any other file is plain text, cut into pieces of whole
            paragraphs. None for Python's own topics.
        sequences: At most as many.

    Raises:
        ConfigError: Naming the line that is no such row, or if the model has no chat template.
    """
    tokenizer = load_tokenizer(model)
    if path is None:
        from requant.corpus.stdlib import topics

        pieces = [piece for _, text in topics() for piece in chunks(text)]
        return text_batches(
            tokenizer, pieces[:: max(1, len(pieces) // sequences)][:sequences], FIDELITY_TOKENS
        )
    if not path.is_file():
        raise ConfigError(f"--text {path}: is no file; give .jsonl or plain text")
    if path.suffix != ".jsonl":
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"--text {path}: is not UTF-8: {error}") from error
        return text_batches(tokenizer, chunks(content)[:sequences], FIDELITY_TOKENS)
    try:
        rows = [(row.place, row.row) for row in read_row_file(path, Columns(), "list")]
    except ContractError as error:
        raise ConfigError(f"--text {error}") from error
    texts = [row["text"] for _, row in rows if "text" in row]
    if not rows or 0 < len(texts) < len(rows):
        found = "both conversations and plain text" if rows else "no row"
        raise ConfigError(f"--text {path}: holds {found}; give rows of one of the two")
    if texts:
        return text_batches(tokenizer, texts[:sequences], FIDELITY_TOKENS)
    if chat_template(model) is None:
        raise ConfigError(
            f"--text {path}: holds conversations, and {model} has no chat template; give plain text"
        )
    try:
        return held_out_batches(tokenizer, rows[:sequences], FIDELITY_TOKENS)[:sequences]
    except ContractError as error:
        raise ConfigError(
            f"--text {path}: cannot be measured on in its first {sequences} rows: {error}"
        ) from error


def held_out_batches(
    tokenizer: Any, rows: Iterable[tuple[str, Row]], max_length: int, rules: Rules | None = None
) -> list[Batch]:
    """Encode held-out rows one sequence a batch: no padding, so no mask to get wrong.

    Args:
        tokenizer: Of the model.
        rows: Place and row.
        max_length: Tokens; longer ones are cut as for training, and their answers too.
        rules: Of the dataset; None for the default ones.

    Raises:
        ContractError: If a row cannot be encoded, or none carries loss.
    """
    import torch

    encoded = encode_rows(tokenizer, rows, rules or Rules(), max_length, "clip")
    if problems := encoded.report.problems:
        raise ContractError("\n".join(["heldout.jsonl: cannot be measured on", *problems]))
    if not encoded.samples:
        raise ContractError(
            "heldout.jsonl: no assistant turn to measure on; raise prepare_data.heldout_fraction "
            "or give a longer held-out file"
        )
    return [
        (torch.tensor([sample["input_ids"]]), torch.tensor([sample["labels"]]))
        for sample in encoded.samples
    ]


def text_batches(tokenizer: Any, texts: Iterable[str], max_length: int) -> list[Batch]:
    """Encode plain texts one sequence a batch; every token but the first carries loss.

    Raises:
        ContractError: If no text has two tokens.
    """
    import torch

    with naming_patterns(tokenizer, "text"):
        encoded = [tokenizer(text)["input_ids"][:max_length] for text in texts]
    batches = [torch.tensor([ids]) for ids in encoded if len(ids) > 1]
    if not batches:
        raise ContractError("text: no document has two tokens; there is nothing to measure on")
    return [(ids, ids) for ids in batches]
