"""The demo's text: English that every Python ships, read from source files, never imported."""

from requant.corpus.stdlib import (
    BASE_SHARE,
    Docstring,
    base_conversations,
    base_documents,
    bucket,
    corpus_digest,
    docstrings,
    in_base,
    instruction,
    topics,
)

__all__ = [
    "BASE_SHARE",
    "Docstring",
    "base_conversations",
    "base_documents",
    "bucket",
    "corpus_digest",
    "docstrings",
    "in_base",
    "instruction",
    "topics",
]
