"""How far one model is from another, measured on the assistant's tokens of held-out text."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.conversation import IGNORED, Row, encode_rows
from requant.errors import ContractError

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", "torch.Tensor"]
"""input_ids and labels, both int64 [1, tokens]."""


@dataclass(frozen=True)
class Fidelity:
    """Candidate against reference, averaged over the tokens that carry loss."""

    kl: float
    """KL(reference || candidate), nats per token."""
    agreement: float
    """Share of tokens with the same most likely token, 0 to 1."""
    loss_reference: float
    """Cross entropy of the text, nats per token."""
    loss_candidate: float
    tokens: int

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat figures for a stage's record."""
        return {
            f"{prefix}kl": self.kl,
            f"{prefix}agreement": self.agreement,
            f"{prefix}loss_reference": self.loss_reference,
            f"{prefix}loss_candidate": self.loss_candidate,
        }


def held_out_batches(tokenizer: Any, rows: Iterable[Row], max_length: int) -> list[Batch]:
    """Encode held-out rows one sequence a batch: no padding, so no mask to get wrong.

    Raises:
        ContractError: If no row has a completion.
    """
    import torch

    encoded = encode_rows(tokenizer, rows, max_length)
    if not encoded:
        raise ContractError(
            "heldout.jsonl: no assistant turn to measure on; raise prepare_data.heldout_fraction "
            "or give a longer held-out file"
        )
    return [
        (torch.tensor([sample["input_ids"]]), torch.tensor([sample["labels"]]))
        for sample in encoded
    ]


def token_log_probs(model: Any, batches: Iterable[Batch]) -> Iterator["torch.Tensor"]:
    """Yield for each batch the log-probabilities that predict its labelled tokens.

    Computed in float32 whatever the model computes in: a bfloat16 log-softmax is off by 1e-2.

    Yields:
        float32 [labelled tokens, vocabulary] on the CPU.
    """
    import torch

    with torch.no_grad():
        for input_ids, labels in batches:
            logits = model(input_ids=input_ids.to(model.device)).logits[0, :-1]
            chosen = (labels[0, 1:] != IGNORED).to(logits.device)
            yield logits[chosen].float().log_softmax(-1).cpu()


def compare_log_probs(
    reference: Iterable["torch.Tensor"],
    candidate: Iterable["torch.Tensor"],
    batches: list[Batch],
) -> Fidelity:
    """Measure a candidate against a reference on the same text.

    KL(p || q) = sum_v p(v) (log p(v) - log q(v)), p the reference, q the candidate. Of
    log-probabilities, so that the two models need not be in memory together.

    Args:
        reference: float32 [labelled tokens, vocabulary] for each batch; see `token_log_probs`.
        candidate: Likewise.
        batches: From `held_out_batches`.

    Raises:
        ContractError: If the two vocabularies differ in size.
    """
    kl = agreement = loss_reference = loss_candidate = 0.0
    tokens = 0
    for ours, theirs, (_, labels) in zip(reference, candidate, batches, strict=True):
        if ours.shape != theirs.shape:
            raise ContractError(
                f"vocabulary: the models predict {ours.shape[-1]} and {theirs.shape[-1]} tokens; "
                "compare models of one tokenizer"
            )
        targets = labels[0, 1:][labels[0, 1:] != IGNORED].unsqueeze(-1)
        kl += float((ours.exp() * (ours - theirs)).sum())
        agreement += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        loss_reference -= float(ours.gather(-1, targets).sum())
        loss_candidate -= float(theirs.gather(-1, targets).sum())
        tokens += len(targets)
    return Fidelity(
        kl=kl / tokens,
        agreement=agreement / tokens,
        loss_reference=loss_reference / tokens,
        loss_candidate=loss_candidate / tokens,
        tokens=tokens,
    )


def exceeds(value: float, limit: float) -> bool:
    """Tell whether a measured figure fails its limit; NaN always does."""
    return math.isnan(value) or value > limit
