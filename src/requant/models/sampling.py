"""Text drawn from a model: every row by random numbers of its own, so that a seed gives it again.

transformers' `generate` draws with one generator for the whole process. Here it is left to take the
likeliest token, of logits from which a draw has been made already: its caches, masks and positions
serve every architecture, and no state of the process decides a word.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.errors import ContractError
from requant.machine.library_noise import no_library_noise

if TYPE_CHECKING:
    import torch

LIKELIEST = 256
"""Tokens that are sorted first, then sixteen times as many until they hold top_p: 24 rows of a
vocabulary of 49,152 take 0.2 s to sort, a third of a step of a model of 135 million parameters."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_tokens: int
    """After a prompt."""
    temperature: float = 1.0
    top_p: float = 1.0


def draw(logits: torch.Tensor, numbers: Sequence[float], sampling: Sampling) -> torch.Tensor:
    """Draw a token for each row: of softmax(logits / temperature), the nucleus alone.

    The nucleus is the smallest set of the likeliest tokens that holds `top_p` (Holtzman et al.
    2020, arXiv:1904.09751). The token is that at which the cumulated probability, from the
    likeliest down, passes number * (probability of the nucleus).

    Args:
        logits: float32 [rows, vocabulary].
        numbers: Of each row one, uniform in [0, 1).
        sampling: Temperature and top_p.

    Returns:
        int64 [rows].
    """
    import torch

    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    vocabulary = probabilities.shape[-1]
    likeliest = min(LIKELIEST, vocabulary) if sampling.top_p < 1 else vocabulary
    values, tokens = probabilities.topk(likeliest, dim=-1)
    while likeliest < vocabulary and bool((values.sum(-1) < sampling.top_p).any()):
        likeliest = min(16 * likeliest, vocabulary)
        values, tokens = probabilities.topk(likeliest, dim=-1)
    cumulated = values.double().cumsum(-1)
    # A token is in the nucleus while those before it do not hold top_p yet.
    inside = ((cumulated - values) < sampling.top_p).sum(-1, keepdim=True).clamp(min=1)
    mass = cumulated.gather(-1, inside - 1)
    points = torch.tensor(numbers, dtype=torch.float64, device=logits.device).unsqueeze(-1) * mass
    places = torch.searchsorted(cumulated, points, right=True).minimum(inside - 1)
    return tokens.gather(-1, places).squeeze(-1)


def continued(
    model: Any,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    ends: Collection[int],
    sampling: Sampling,
    pad: int,
) -> list[list[int]]:
    """Let a model go on with several prompts at once.

    What is drawn for a row depends on its name, its prompt and the last digits of its logits, which
    the rows beside it move.

    Args:
        model: Causal language model of transformers, in evaluation mode.
        prompts: Token ids of each row; none is empty.
        names: Of each row; they seed its random numbers.
        ends: Tokens that end a row.
        sampling: How tokens are drawn. Nothing goes on beyond the positions that the model was
            trained on.
        pad: Any token: it is masked.

    Returns:
        New ids of each row: up to its first end, that included, or as many as it may have.

    Raises:
        ContractError: If a logit is not a number.
    """
    import torch

    longest = max(map(len, prompts))
    positions = getattr(model.config, "max_position_embeddings", None)
    most = min(sampling.max_tokens, positions - longest) if positions else sampling.max_tokens
    if most < 1:
        return [[] for _ in prompts]
    ids = torch.tensor([[pad] * (longest - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    with no_library_noise():
        whole = _generate(model, ids, mask, names, ends, sampling, most, pad)
    return [_until_end(row, frozenset(ends)) for row in whole[:, longest:].tolist()]


def _generate(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    names: Sequence[str],
    ends: Collection[int],
    sampling: Sampling,
    most: int,
    pad: int,
) -> torch.Tensor:
    import torch
    from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

    numbers = [random.Random(name) for name in names]

    class Drawn(LogitsProcessor):  # type: ignore[misc]
        """Leaves of each row the token that is drawn."""

        def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
            if scores.isnan().any():
                raise ContractError(
                    "write_replay: the base's logits are not numbers; check the base, or set "
                    "write_replay.enabled=false"
                )
            tokens = draw(scores, [each.random() for each in numbers], sampling)
            left = torch.full_like(scores, -torch.inf)
            return left.scatter_(-1, tokens.unsqueeze(-1), 0.0)

    # What the base's own generation_config.json asks for, such as a penalty of repetitions, is not
    # how it speaks, but how somebody would have it served.
    model.generation_config = GenerationConfig()
    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=pad
    )
    found: torch.Tensor = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([Drawn()]),
    )
    return found


def _until_end(ids: Sequence[int], ends: frozenset[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in ends), len(ids) - 1)
    return list(ids[: end + 1])
