"""How far one model is from another, measured on the assistant's tokens of held-out text."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from requant.comparison.batches import Batch
from requant.data.turns import IGNORED
from requant.errors import ContractError
from requant.figures import Wording, figure
from requant.statistics import Estimate, Gain, ratio_estimate

if TYPE_CHECKING:
    import torch


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
    kl_p99: float = math.nan
    """KL of the token that 99 % of the tokens are below, nats."""
    texts: tuple[tuple[float, float], ...] = ()
    """KL summed over the tokens of each sequence, nats, and how many tokens these are."""
    losses: tuple[tuple[float, float], ...] = ()
    """Cross entropy of each sequence under reference and candidate, nats."""
    paired: Mapping[str, Estimate] = field(default_factory=dict)
    """kl, agreement and loss_change (candidate minus reference, on the same tokens)."""

    @property
    def loss_change(self) -> float:
        """How much worse the candidate predicts the text, nats per token."""
        return self.loss_candidate - self.loss_reference

    def gain_since(self, before: Sequence[float]) -> Gain:
        """Return what the reference won since another model, and what the candidate has of it.

        Args:
            before: Cross entropy of each sequence under that model, nats.
        """
        reached, left = zip(*self.losses, strict=True)
        return Gain(tuple(before), reached, left, tuple(count for _, count in self.texts))

    def in_full(self) -> dict[str, float]:
        """All figures, with standard errors over sequences where there are two at least.

        ln_ppl_ratio is ln(perplexity of the candidate / of the reference), which is loss_change.
        """
        names = {"kl": "kl", "agreement": "agreement", "loss_change": "ln_ppl_ratio"}
        errors = {f"{name}_error": self.paired[key].error for key, name in names.items()}
        return {
            **self.as_metrics(),
            "kl_p99": self.kl_p99,
            "ln_ppl_ratio": self.loss_change,
            **{name: error for name, error in errors.items() if math.isfinite(error)},
        }

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """Flat figures for a stage's record."""
        return {
            f"{prefix}kl": self.kl,
            f"{prefix}agreement": self.agreement,
            f"{prefix}loss_reference": self.loss_reference,
            f"{prefix}loss_candidate": self.loss_candidate,
        }


def divergence_words(prefix: str = "") -> Wording:
    """Say how far apart two models are, of the figures `Fidelity.as_metrics` gave by a prefix."""

    def text(metrics: Mapping[str, float]) -> str:
        kl, agreement = (metrics.get(f"{prefix}{name}") for name in ("kl", "agreement"))
        parts = [
            f"kl {figure(kl)}" if kl is not None else "",
            f"{agreement:.1%} agree" if agreement is not None else "",
        ]
        return ", ".join(part for part in parts if part)

    return text


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
    import torch

    sums = []
    divergences = []
    for ours, theirs, (_, labels) in zip(reference, candidate, batches, strict=True):
        if ours.shape != theirs.shape:
            raise ContractError(
                f"vocabulary: the models predict {ours.shape[-1]} and {theirs.shape[-1]} tokens; "
                "compare models of one tokenizer"
            )
        targets = _targets(labels)
        divergences.append((ours.exp() * (ours - theirs)).sum(-1))
        sums.append(
            (
                float(divergences[-1].sum()),
                float((ours.argmax(-1) == theirs.argmax(-1)).sum()),
                -float(ours.gather(-1, targets).sum()),
                -float(theirs.gather(-1, targets).sum()),
                float(len(targets)),
            )
        )
    kl, agreement, loss_reference, loss_candidate, counts = zip(*sums, strict=True)
    change = [theirs - ours for ours, theirs in zip(loss_reference, loss_candidate, strict=True)]
    tokens = sum(counts)
    return Fidelity(
        kl=sum(kl) / tokens,
        agreement=sum(agreement) / tokens,
        loss_reference=sum(loss_reference) / tokens,
        loss_candidate=sum(loss_candidate) / tokens,
        tokens=int(tokens),
        texts=tuple(zip(kl, counts, strict=True)),
        losses=tuple(zip(loss_reference, loss_candidate, strict=True)),
        kl_p99=float(torch.cat(divergences).quantile(0.99)),
        paired={
            "kl": ratio_estimate(kl, counts),
            "agreement": ratio_estimate(agreement, counts),
            "loss_change": ratio_estimate(change, counts),
        },
    )


def sequence_losses(log_probs: Iterable["torch.Tensor"], batches: Iterable[Batch]) -> list[float]:
    """Return the cross entropy of each sequence, nats; see `token_log_probs`."""
    return [
        -float(found.gather(-1, _targets(labels)).sum())
        for found, (_, labels) in zip(log_probs, batches, strict=True)
    ]


def _targets(labels: "torch.Tensor") -> "torch.Tensor":
    """Return the labelled tokens, int64 [labelled tokens, 1]."""
    return labels[0, 1:][labels[0, 1:] != IGNORED].unsqueeze(-1)


def exceeds(value: float, limit: float) -> bool:
    """Tell whether a measured figure fails its limit; NaN always does."""
    return math.isnan(value) or value > limit
