"""train_adapter, continue_train and train_on_grid: what is trained, and for how long."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from requant.config.given_names import Name
from requant.config.section import (
    NEUTRAL_DEFAULT,
    NOT_IN_KEY,
    Fraction,
    Positive,
    Relative,
    Section,
    StoredDtype,
)
from requant.methods import METHODS


class Optimisation(Section):
    """How long and how fast to train. Exactly one of max_steps and epochs bounds it."""

    max_steps: int | None = Field(None, ge=1, description="optimizer steps")
    epochs: float | None = Field(None, gt=0.0, description="passes over the training rows")
    batch_size: Positive = Field(8, description="sequences per device and forward pass")
    gradient_accumulation: Positive = Field(1, description="forward passes per optimizer step")
    learning_rate: float = Field(2e-4, gt=0.0, le=1.0, description="peak")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after warm-up")
    warmup_ratio: Fraction = Field(0.03, description="of all steps")
    weight_decay: float = Field(0.0, ge=0.0, le=1.0, description="AdamW")
    max_grad_norm: Relative = Field(1.0, description="global norm the gradient is clipped to")
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw_torch", description="the 8-bit ones save memory on a GPU"
    )
    max_length: int = Field(512, ge=16, le=131072, description="tokens of a sample; see too_long")
    too_long: Literal["cut", "drop", "refuse"] = Field(
        "cut",
        description="longer samples: cut drops the oldest turns, then the last question's "
        "beginning, and never the system message or the answer",
    )
    checkpoint_steps: Positive = Field(
        100, description="steps between resumable checkpoints", json_schema_extra=NOT_IN_KEY
    )
    gradient_checkpointing: bool = Field(
        False, description="trade time for memory", json_schema_extra=NOT_IN_KEY
    )

    @model_validator(mode="after")
    def _one_bound(self) -> "Optimisation":
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError(
                f"set exactly one of max_steps={self.max_steps} and epochs={self.epochs}"
            )
        return self


class Pull(Section):
    """A second term of the loss, which holds a model near the one that its training starts from.

    What it promises and costs: docs/generations.md.
    """

    kind: Literal["kl", "l2"] = Field(
        description="kl: KL(start || now) on the assistant's tokens, nats a token, for one more "
        "forward pass a batch; l2: squared Frobenius norm of what the update has changed by"
    )
    weight: float = Field(
        gt=0.0, le=1e6, description="factor of the term: of nats a token, or of squared weights"
    )


class TrainAdapter(Section):
    """LoRA (Hu et al. 2021) or DoRA (Liu et al. 2024) on the quantized base."""

    enabled: bool = Field(True, json_schema_extra=NOT_IN_KEY)
    method: Literal["lora", "rslora", "dora", "prefix_tuning", "prompt_tuning", "p_tuning"] = Field(
        "lora",
        description="on nf4 a DoRA adapter is a QDoRA; rslora scales by alpha / sqrt(rank); the "
        "last three cannot be merged",
    )
    rank: int = Field(
        16, ge=1, le=1024, description="r, rows of A and columns of B; prompt tokens for the others"
    )
    alpha: Relative = Field(32.0, description="update is scaled by alpha / rank")
    dropout: Fraction = Field(0.0, description="on the adapter's input")
    target_modules: tuple[Name, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers; all-linear finds nothing on a GPTQ base",
    )
    pull: Pull | None = Field(
        None,
        description="towards the model that tonight starts from; null: none",
        json_schema_extra=NEUTRAL_DEFAULT,
    )
    optimisation: Optimisation

    @model_validator(mode="before")
    @classmethod
    def _length_where_off(cls, given: Any) -> Any:
        return _with_length_where_off(given)

    @model_validator(mode="after")
    def _pull_fits_method(self) -> "TrainAdapter":
        if self.pull and self.pull.kind == "l2" and METHODS[self.method].prompts:
            raise ValueError(
                f"pull.kind='l2' with method={self.method!r}: a prompt begins as random numbers, "
                "and to stay near those holds the model near nothing; set pull.kind=kl, or take "
                "method=lora, rslora or dora"
            )
        return self


class ContinueTrain(Section):
    """Optional training of the merged 16-bit model.

    On SmolLM2-135M-Instruct, 15 steps at 1e-5 of all weights gain 0.079 nats; bfloat16 takes back
    0.064 of them (0.73 of the KL), float16 0.015 (0.07). Hence `dtype: auto`.
    """

    enabled: bool = Field(True, json_schema_extra=NOT_IN_KEY)
    scope: Literal["full", "top_layers"] = Field("full", description="what is trained")
    layers: int | None = Field(None, ge=1, description="blocks from the top, top_layers only")
    dtype: Literal["auto", StoredDtype] = Field(
        "auto",
        description="of the result's weights; original keeps each tensor's own, float32 makes a "
        "master of twice the size that rounds nothing, auto does where the own dtype is too coarse",
    )
    optimisation: Optimisation
    heldout_rows: Positive = Field(
        16, description="held-out conversations the result is measured on"
    )
    rounding_max_kl_share: Relative = Field(
        0.05, description="KL that rounding adds, as a share of the training's own"
    )
    rounding_max_loss_share: Relative = Field(
        0.1, description="loss that rounding adds, as a share of what the training gains"
    )

    @model_validator(mode="before")
    @classmethod
    def _length_where_off(cls, given: Any) -> Any:
        return _with_length_where_off(given)

    @model_validator(mode="after")
    def _layers_fit_scope(self) -> "ContinueTrain":
        if (self.scope == "top_layers") != (self.layers is not None):
            raise ValueError(
                f"layers={self.layers} with scope={self.scope!r}: "
                "give layers with scope top_layers, and only there"
            )
        return self


class GridOptimisation(Optimisation):
    """`Optimisation` of ternary numbers, which have to come a long way before one counts."""

    learning_rate: float = Field(0.08, gt=0.0, le=1.0, description="peak; a number counts from 0.5")


class TrainOnGrid(Section):
    """Experimental: ternary updates of GPTQ codes (LoTA-QAF, arXiv:2505.18724).

    Trained and shipped model are one, to the bit; `requant undo` gives the base back. What it costs
    against the default chain, measured: docs/reversible.md.
    """

    enabled: bool = Field(False, json_schema_extra=NOT_IN_KEY)
    rank: int = Field(
        8, ge=1, le=64, description="columns of A, rows of B; the delta grows with it"
    )
    threshold: Fraction = Field(
        0.75, description="a code moves where |A B| is more than this share of rank"
    )
    target_modules: tuple[Name, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers",
    )
    optimisation: GridOptimisation
    heldout_rows: Positive = Field(
        16, description="held-out conversations the result is measured on"
    )
    delta_max_share: Fraction = Field(0.01, description="of the model's bytes, refused above")

    @model_validator(mode="before")
    @classmethod
    def _length_where_off(cls, given: Any) -> Any:
        off = isinstance(given, Mapping) and "enabled" not in given
        return _with_length_where_off({**given, "enabled": False} if off else given)

    @property
    def omega(self) -> int:
        """The largest |A B| that moves no code."""
        return int(self.threshold * self.rank)


def _with_length_where_off(given: Any) -> Any:
    """Give a stage that is off a length of training, which nobody has to think of for it."""
    if isinstance(given, Mapping) and given.get("enabled") is False:
        return {"optimisation": {"max_steps": 1}, **given}
    return given
