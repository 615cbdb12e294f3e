"""The score of one document that says most about a model: log-likelihoods instead of hits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Kind = Literal["log_likelihood", "own"]
"""In nats a byte, or the number of the task's own metric."""

Sample = Mapping[str, Any]
"""lm-eval's record of one document."""


def is_likelihood(metric: str) -> bool:
    """Tell whether a metric's documents are scored in log-likelihood, which is better higher."""
    return metric.endswith("perplexity") or metric == "bits_per_byte"


def fine_scores(
    metric: str, samples: Sequence[Sample], scores: Sequence[float]
) -> tuple[Kind, list[float]]:
    """Score documents as finely as a model's answers allow.

    - A text: ln p(text) / bytes; after its question, where it has one.
    - A choice: ln p(right) / bytes of it - mean over the wrong options of ln p(wrong) / bytes. It
      moves with every step of a model, where a hit moves only when two options change places; what
      makes all options likelier alike leaves it as it was.
    - Anything else: the score itself.

    Args:
        metric: The task's main one.
        samples: One a document.
        scores: Of the same documents in the metric.
    """
    if is_likelihood(metric):
        sizes = map(_bytes, samples)
        return "log_likelihood", [score / size for score, size in zip(scores, sizes, strict=True)]
    contrasts = [_contrast(sample) for sample in samples]
    known = [contrast for contrast in contrasts if contrast is not None]
    # Of some documents alone it would be another task.
    if len(known) == len(contrasts):
        return "log_likelihood", known
    return "own", list(scores)


def _bytes(sample: Sample) -> int:
    """Count the bytes of a text; lm-eval does, where the task asks for a perplexity of bytes."""
    counted = sample.get("byte_perplexity")
    if isinstance(counted, (tuple, list)):
        return max(1, int(counted[1]))
    return max(1, len(str(sample["target"]).encode()))


def _contrast(sample: Sample) -> float | None:
    """Return how much likelier the right option is than the others; None for what is no choice."""
    asked = sample["arguments"]
    if not all(len(item) == 2 and isinstance(item[1], str) for item in asked):
        return None
    # Metrics of mutual information ask for each option once more, after nothing.
    options = [n for n, (prompt, _) in enumerate(asked) if prompt == asked[0][0]]
    right = sample["target"]
    if not isinstance(right, int) or right not in options or len(options) < 2:
        return None
    rates = [
        float(sample["filtered_resps"][n][0]) / max(1, len(asked[n][1].strip().encode()))
        for n in options
    ]
    wrong = [rate for n, rate in enumerate(rates) if n != right]
    return rates[right] - math.fsum(wrong) / len(wrong)
