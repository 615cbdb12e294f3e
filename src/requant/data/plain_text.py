"""Plain text: read from a file, and cut into pieces that a small model can read."""

from pathlib import Path

from requant.errors import ConfigError

# Below the context of the demo's base at four characters a token; longer ones would only be cut.
CHUNK_CHARACTERS = 600


def read_text(field: str, path: Path) -> str:
    """Read a file that the configuration names as text.

    Args:
        field: Of the configuration, for the errors.
        path: UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: If it does not exist or is no text, naming field, file and way out.
    """
    require_file(field, path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{field}: {path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as "
            "plain text"
        ) from error


def require_file(field: str, path: Path) -> None:
    """Refuse a file that does not exist.

    Raises:
        ConfigError: Naming field, file and way out.
    """
    if not path.is_file():
        raise ConfigError(f"{field}: {path} is not a file; give an existing one")


def chunks(text: str) -> list[str]:
    """Cut a text into pieces of whole paragraphs, at least `CHUNK_CHARACTERS` long where possible.

    A paragraph longer than twice that is cut between words.
    """
    pieces: list[str] = []
    current = ""
    for paragraph in text.split("\n\n"):
        for part in _bounded(paragraph):
            if current and len(current) + len(part) > CHUNK_CHARACTERS:
                pieces.append(current)
                current = ""
            current = f"{current}\n\n{part}" if current else part
    return [piece for piece in [*pieces, current] if piece.strip()]


def _bounded(paragraph: str) -> list[str]:
    pieces = []
    start = 0
    while len(paragraph) - start > CHUNK_CHARACTERS:
        cut = paragraph.rfind(" ", start + 1, start + CHUNK_CHARACTERS)
        end = cut if cut > 0 else start + CHUNK_CHARACTERS
        pieces.append(paragraph[start:end])
        start = end
    rest = paragraph[start:]
    return [*pieces, rest.strip("\n")] if rest.strip() else pieces
