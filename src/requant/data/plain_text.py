"""Plain text, cut into pieces that a small model can read."""

# Below the context of the demo's base at four characters a token; longer ones would only be cut.
CHUNK_CHARACTERS = 600


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
