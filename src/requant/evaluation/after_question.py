"""The perplexity of an answer after its question, in lm-eval, which has it of whole texts alone."""

from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = f"""\
doc_to_choice: !function {__name__}.one_answer
process_results: !function {__name__}.score_answer
"""
"""The functions below as lm-eval reads them from a task file."""


def one_answer(document: Mapping[str, Any]) -> list[str]:
    """Return all that there is to choose from."""
    return [str(document["text"])]


def score_answer(
    document: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, tuple[float, int]]:
    """Score one answer in the form of lm-eval's perplexities: (log-likelihood, size).

    Args:
        document: With its `text`.
        results: The log-likelihood of the answer, nats, and whether it is the greedy one.
    """
    ((log_likelihood, _),) = results
    text = str(document["text"])
    return {
        "word_perplexity": (log_likelihood, max(1, len(text.split()))),
        "byte_perplexity": (log_likelihood, max(1, len(text.encode()))),
    }
