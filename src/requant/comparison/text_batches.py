"""Text to measure models on: a file of a person's own, or what every Python has."""

from pathlib import Path

from requant.comparison.divergence import Batch, held_out_batches, text_batches
from requant.comparison.folders import FIDELITY_TOKENS
from requant.config.data import Columns
from requant.data.files import read_file
from requant.data.plain_text import chunks
from requant.errors import ConfigError, ContractError
from requant.models.tokenizer import chat_template, load_tokenizer


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
        rows = [(row.place, row.row) for row in read_file(path, Columns(), "list")]
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
