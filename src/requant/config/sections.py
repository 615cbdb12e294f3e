"""The configuration, one frozen section per stage. Every field carries its unit and range.

A section is also what enters the stage's key: a field marked `not_in_key` does not change the
bytes a stage produces (or is represented by the digest of the content it points to).
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from requant.combination import Combination

NOT_IN_KEY: dict[str, Any] = {"not_in_key": True}

LocalPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""YAML and `--set` know no shell that would write out `~`."""
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Relative = Annotated[float, Field(gt=0.0)]
StoredDtype = Literal["original", "bfloat16", "float16", "float32"]


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def key_fields(self) -> dict[str, Any]:
        """Return the part of this section that decides the bytes of the stage's artifact."""
        return _key_fields(self)


def _key_fields(section: BaseModel) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("not_in_key"):
            continue
        value = getattr(section, name)
        fields[name] = (
            _key_fields(value)
            if isinstance(value, BaseModel)
            else section.model_dump(mode="json", include={name})[name]
        )
    return fields


# --------------------------------------------------------------------------- prepare_base


class StdlibBase(Section):
    """Train a small Qwen3-architecture model on the English text every Python ships."""

    kind: Literal["stdlib"]
    vocab_size: int = Field(4096, ge=512, le=65536, description="tokens, byte-level BPE")
    hidden_size: int = Field(256, ge=64, multiple_of=64, description="channels; GPTQ needs 64s")
    layers: Positive = Field(4, description="transformer blocks")
    heads: Positive = Field(4, description="query heads; must divide hidden_size")
    kv_heads: Positive = Field(2, description="key/value heads; must divide heads")
    intermediate_size: int = Field(768, ge=64, multiple_of=64, description="channels of the MLP")
    steps: Positive = Field(300, description="optimizer steps")
    batch_size: Positive = Field(8, description="sequences per step")
    sequence_length: int = Field(256, ge=16, le=4096, description="tokens per sequence")
    learning_rate: Relative = Field(2e-3, description="peak, AdamW")

    @model_validator(mode="after")
    def _heads_fit(self) -> "StdlibBase":
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} must divide hidden_size={self.hidden_size} and be a multiple "
                f"of kv_heads={self.kv_heads}"
            )
        return self


class FolderBase(Section):
    """An ordinary Hugging Face folder: config.json, *.safetensors, tokenizer files."""

    kind: Literal["folder"]
    path: LocalPath = Field(description="folder", json_schema_extra=NOT_IN_KEY)


class HubBase(Section):
    """A model on the Hugging Face hub; the commit its revision resolves to enters the key."""

    kind: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    revision: str = Field(
        "main", description="branch, tag or 40-hex commit", json_schema_extra=NOT_IN_KEY
    )


class PrepareBase(Section):
    """The 16-bit original: kept for ever, never overwritten."""

    source: Annotated[StdlibBase | FolderBase | HubBase, Field(discriminator="kind")]


# --------------------------------------------------------------------------- prepare_data


class StdlibData(Section):
    """Instruction pairs from standard-library docstrings, split by module into nights."""

    kind: Literal["stdlib"]
    night: Positive = Field(1, description="which night's modules to train on, 1 to nights")
    nights: Positive = Field(3, description="nights the training modules are split into")

    @model_validator(mode="after")
    def _night_exists(self) -> "StdlibData":
        if self.night > self.nights:
            raise ValueError(f"night={self.night} is past nights={self.nights}")
        return self


class FilesData(Section):
    """Local JSONL or Parquet files."""

    kind: Literal["files"]
    train: tuple[LocalPath, ...] = Field(
        min_length=1, description=".jsonl or .parquet", json_schema_extra=NOT_IN_KEY
    )
    heldout: LocalPath | None = Field(
        None,
        description=".jsonl or .parquet; null cuts heldout_fraction off train",
        json_schema_extra=NOT_IN_KEY,
    )
    old_text: LocalPath | None = Field(
        None,
        description="plain text of the skill to keep; its perplexity is evaluated",
        json_schema_extra=NOT_IN_KEY,
    )

    @field_validator("train", "heldout")
    @classmethod
    def _known_format(cls, value: tuple[Path, ...] | Path | None) -> tuple[Path, ...] | Path | None:
        paths = value if isinstance(value, tuple) else (value,) if value else ()
        for path in paths:
            if path.suffix not in {".jsonl", ".parquet"}:
                raise ValueError(
                    f"{path} must end in .jsonl or .parquet. JSON, CSV and text: datasets."
                    "load_dataset('json' | 'csv' | 'text', data_files=...)['train'].to_json("
                    "'rows.jsonl') writes one"
                )
        return value


class HubData(Section):
    """A dataset on the Hugging Face hub; the commit its revision resolves to enters the key."""

    kind: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    revision: str = Field(
        "main", description="branch, tag or 40-hex commit", json_schema_extra=NOT_IN_KEY
    )
    subset: str | None = Field(None, description="configuration name; null for the only one")
    train_split: str = Field("train", description="split name")
    heldout_split: str | None = Field(None, description="null cuts heldout_fraction off train")


class Columns(Section):
    """Names of columns that differ from the usual ones; by those, formats are recognised."""

    messages: str | None = Field(
        "messages",
        description="column of [{role, content}, ...] or ShareGPT's [{from, value}, ...]; as it "
        "is, each row's format is recognised by its columns",
    )
    prompt: str | None = Field(None, description="column of the user's text")
    response: str | None = Field(None, description="column of the assistant's text")

    @model_validator(mode="after")
    def _one_shape(self) -> "Columns":
        pair = self.prompt is not None and self.response is not None
        if pair == (self.messages is not None) or (self.prompt is None) != (self.response is None):
            raise ValueError(
                f"give either messages, or prompt and response (with messages: null); got "
                f"messages={self.messages!r}, prompt={self.prompt!r}, response={self.response!r}"
            )
        return self


class PrepareData(Section):
    """One night's conversations, a held-out part, and the evaluation tasks made from it."""

    source: Annotated[StdlibData | FilesData | HubData, Field(discriminator="kind")]
    columns: Columns = Columns()
    heldout_fraction: float = Field(0.1, gt=0.0, lt=0.5, description="of rows, where none is given")
    max_rows: int | None = Field(
        None, ge=1, description="training rows kept, first by seed; null: all"
    )
    max_evaluation_rows: Positive = Field(64, description="rows per generated evaluation task")
    unknown_fields: Literal["list", "refuse"] = Field(
        "list", description="columns and message fields that nothing reads: count and say, or stop"
    )
    control_tokens: Literal["refuse", "text"] = Field(
        "refuse",
        description="control tokens spelled in a text, which could put words into the "
        "assistant's mouth: stop, or encode them as ordinary text",
    )
    end_token: Literal["require", "allow"] = Field(
        "require",
        description="whether the template may end the assistant's turn without a token that stops "
        "the model",
    )
    clock: datetime = Field(
        datetime(2025, 1, 1),
        description="the moment a chat template's strftime_now tells, in training and measuring",
    )


# --------------------------------------------------------------------------- training


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


# --------------------------------------------------------------------------- the six stages


class QuantizeBase(Section):
    """The cheap base the adapter is trained on.

    SmolLM2-135M-Instruct is 0.30 nats per token from its NF4 (69% agreement), 0.021 from int8.
    """

    enabled: bool = Field(
        True, description="false trains on the original", json_schema_extra=NOT_IN_KEY
    )
    method: Literal["nf4", "int8", "gptq"] = Field("nf4", description="bitsandbytes or GPTQModel")
    group_size: Literal[32, 64, 128] = Field(128, description="weights per scale, gptq only")
    calibration_rows: Positive = Field(128, description="conversations, gptq only")
    fidelity_max_kl: Relative = Field(
        1.0, description="nats per token, original against quantized base, where there is a dataset"
    )


UNMERGEABLE_METHODS = ("prefix_tuning", "prompt_tuning", "p_tuning")
"""They train tokens in front of the text, so there is no weight to put them into."""


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
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="names of the linear layers; all-linear finds nothing on a GPTQ base",
    )
    optimisation: Optimisation


class MergeFp16(Section):
    """The adapter into the retained original: accumulated in fp32, rounded once.

    The limits stand on SmolLM2-135M-Instruct (LoRA of rank 16 on NF4, 60 steps, loss 3.65 to 2.93;
    16 held-out conversations). Merged in bfloat16: none of 210 modules off, rounding 0.0055 of the
    update's KL and 0.023 of its gain, merged against trained 0.18 nats (84% agreement, loss -0.04).
    With 0.3 and 0.1 of that update rounding takes 0.20 and 0.43 of the KL; in float16 the whole one
    loses 1e-6.
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
        0.5, description="nats per token, merged against quantized base+adapter"
    )
    trained_min_agreement: Fraction = Field(
        0.5, description="share of tokens with the same most likely token, likewise"
    )
    trained_max_loss: Relative = Field(
        0.1, description="nats per token that merging may add to the loss, likewise"
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
    def tries(self) -> bool:
        """Whether several merged models are built and the best one is kept."""
        return self.base == "measured" or len(self.scales) > 1


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

    @model_validator(mode="after")
    def _layers_fit_scope(self) -> "ContinueTrain":
        if (self.scope == "top_layers") != (self.layers is not None):
            raise ValueError(
                f"layers={self.layers} with scope={self.scope!r}: "
                "give layers with scope top_layers, and only there"
            )
        return self


class RequantizeGptq(Section):
    """GPTQ (Frantar et al. 2023) of the 16-bit result, calibrated on the training distribution.

    SmolLM2-135M-Instruct is 0.106 nats per token from its 4 bit (groups of 64, 83% agreement).
    """

    enabled: bool = Field(True, json_schema_extra=NOT_IN_KEY)
    bits: Literal[4, 8] = Field(4, description="bits per weight")
    group_size: Literal[32, 64, 128] = Field(
        128, description="weights per scale; must divide in_features"
    )
    desc_act: bool = Field(False, description="quantize by decreasing activation; slower to serve")
    symmetric: bool = Field(True, description="no zero point")
    damp_percent: float = Field(0.05, gt=0.0, lt=1.0, description="of the mean Hessian diagonal")
    calibration_rows: Positive = Field(128, description="conversations from the training set")
    calibration_length: int = Field(512, ge=16, le=32768, description="tokens; longer rows are cut")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="of what is not quantized; auto keeps each tensor's own, and of a float32 "
        "master takes the original's (bfloat16 where that is float32 too)",
    )
    fidelity_rows: Positive = Field(
        16, description="held-out conversations the loss is measured on"
    )
    fidelity_max_kl: Relative = Field(0.5, description="nats per token, 16 bit against 4 bit")


class Evaluate(Section):
    """lm-eval on every model of the night."""

    enabled: bool = Field(True, json_schema_extra=NOT_IN_KEY)
    generated_tasks: bool = Field(
        True, description="the tasks prepare_data made from the held-out part"
    )
    past_nights: int = Field(
        7, ge=0, le=365, description="earlier nights whose held-out rows are evaluated too"
    )
    past_rows: Positive = Field(64, description="of them in all, shared by the nights")
    tasks: tuple[str, ...] = Field((), description="further lm-eval task names; most need the hub")
    limit: int | None = Field(None, ge=1, description="documents per task; null: all")
    few_shot: int = Field(0, ge=0, le=64, description="examples in the prompt of `tasks`")
    chat_template: bool = Field(
        False, description="put the prompts of `tasks` through the chat template"
    )
    batch_size: Positive = Field(8, description="sequences per forward pass")

    @model_validator(mode="after")
    def _something_to_evaluate(self) -> "Evaluate":
        if self.enabled and not self.generated_tasks and not self.tasks:
            raise ValueError("generated_tasks=false and tasks=() leave nothing to evaluate")
        return self
