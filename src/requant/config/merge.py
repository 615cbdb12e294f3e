"""merge_fp16: into what, of how much, and within which limits."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field, model_validator

from requant.combination import Combination
from requant.config.section import NOT_IN_KEY, Fraction, Positive, Relative, Section, StoredDtype


@dataclass(frozen=True)
class MergeLimits:
    """How far off a merge may be: the fields of `MergeFp16` of the same names."""

    parity_max_kl: float
    parity_max_module: float
    rounding_max_kl_share: float
    rounding_max_loss_share: float
    trained_max_kl: float
    trained_min_agreement: float
    trained_max_gain_lost: float


class MergeFp16(Section):
    """The adapter into the retained original: accumulated in fp32, rounded once.

    The limits stand on SmolLM2-135M-Instruct (LoRA of rank 16 on NF4, 60 steps, loss 3.65 to 2.93;
    16 held-out conversations). Merged in bfloat16: none of 210 modules off, rounding 0.0055 of the
    update's KL and 0.023 of its gain. With 0.3 and 0.1 of that update rounding takes 0.20 and 0.43
    of the KL; in float16 the whole one loses 1e-6. Merged against trained, on plain files of four
    kinds: 0.20 to 0.59 nats, 60% to 89% agreement, at most 14% of what was won (docs/merge.md).
    """

    enabled: bool = Field(
        True,
        description="false evaluates the adapter on the base it was trained on",
        json_schema_extra=NOT_IN_KEY,
    )
    dtype: StoredDtype = Field(
        "original",
        description="of the merged weights; original keeps each tensor's own, float32 makes a "
        "master that rounds nothing, of twice the size",
    )
    base: Literal["original", "dequantized", "measured"] = Field(
        "original",
        description="what is merged into; dequantized: what quantization left of the original; "
        "measured: the better of both",
    )
    untie: bool = Field(
        False, description="may give a tied output layer weights of its own where only one trained"
    )
    past_nights: int = Field(
        0, ge=0, le=31, description="adapters of past nights merged with tonight's"
    )
    combine: Combination = Field(
        "cat", description="how several adapters become one; cat and linear: weighted sum"
    )
    weights: tuple[Annotated[float, Field(gt=0.0, allow_inf_nan=False)], ...] = Field(
        (),
        description="of tonight's adapter, last night's, ...; in the first nights their sum is "
        "shared by those there are, the very first merges tonight's whole. Empty: equal shares of "
        "one, or 1 each for ties and dare_ties, which take means",
    )
    density: float = Field(
        0.5, gt=0.0, lt=1.0, description="share of an update that ties, dare and prune keep"
    )
    scales: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (1.0,), min_length=1, description="shares of the update that are tried, best kept"
    )
    old_weight: float = Field(
        1.0,
        ge=0.0,
        description="of the old text's loss beside the new one's where models are tried",
    )
    parity_rows: Positive = Field(
        16, description="held-out conversations the parity is measured on"
    )
    parity_max_kl: Relative = Field(
        1e-6, description="nats per token, merged against original+adapter: arithmetic alone"
    )
    parity_max_module: Relative = Field(
        0.1, description="a module's output off, as a share of the adapter's, beyond rounding"
    )
    rounding_max_kl_share: Relative = Field(
        0.05, description="KL that rounding adds, as a share of the update's own"
    )
    rounding_max_loss_share: Relative = Field(
        0.1, description="loss that rounding adds, as a share of what the update gains"
    )
    trained_max_kl: Relative = Field(
        2.0, description="nats per token, merged against quantized base+adapter"
    )
    trained_min_agreement: Fraction = Field(
        0.5, description="share of tokens with the same most likely token, likewise"
    )
    trained_max_gain_lost: Relative = Field(
        0.5,
        description="share of what was won over the original that merging may take, in loss, "
        "likewise; refused where it is shown to take more (95 %, over the conversations)",
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> "MergeFp16":
        if self.past_nights and self.untie:
            raise ValueError(
                f"past_nights={self.past_nights}, untie=true: an adapter that unties the output "
                "layer cannot be combined with others; set one of the two to its default"
            )
        if self.weights and not self.past_nights:
            raise ValueError(
                f"weights={list(self.weights)}: are of several adapters; give past_nights too, or "
                "scales for a share of tonight's"
            )
        if self.weights and len(self.weights) != self.past_nights + 1:
            raise ValueError(
                f"weights={list(self.weights)}: give past_nights + 1 = {self.past_nights + 1} of "
                "them, tonight's first"
            )
        return self

    @property
    def limits(self) -> MergeLimits:
        """What a merge is held to, without the rest of the section."""
        return MergeLimits(**{item.name: getattr(self, item.name) for item in fields(MergeLimits)})
