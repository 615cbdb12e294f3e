"""quantize_base and requantize_gptq: to how few bits, and how far from the original."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from requant.config.given_names import Name
from requant.config.section import NOT_IN_KEY, Fraction, Positive, Relative, Section


class Override(Section):
    """Fields of GPTQ that some layers take otherwise; none of them changes the layout."""

    modules: tuple[Name, ...] = Field(
        min_length=1, description="names of layers, as train_adapter.target_modules: down_proj"
    )
    mse: float | None = Field(None, ge=0.0, le=8.0)
    damp_percent: float | None = Field(None, gt=0.0, lt=1.0)
    act_group_aware: bool | None = None

    def chosen(self) -> dict[str, Any]:
        """Return what was changed."""
        return self.model_dump(exclude_none=True, exclude={"modules"})


class GptqFields(Section):
    """GPTQ (Frantar et al. 2023, arXiv:2210.17323): named as GPTQModel names it.

    What each choice buys on SmolLM2-135M, measured: docs/requantize.md.
    """

    bits: Literal[2, 3, 4, 8] = Field(4, description="bits per weight")
    group_size: Literal[-1, 16, 32, 64, 128] = Field(
        128, description="weights per scale; must divide in_features; -1: one scale a row"
    )
    desc_act: bool = Field(
        False, description="round all columns by decreasing activation; slower to serve"
    )
    act_group_aware: bool = Field(
        True,
        description="round by decreasing activation, whole groups at a time; costs nothing to "
        "serve; desc_act takes its place",
    )
    symmetric: bool = Field(True, description="no zero point; vLLM's Marlin kernels take no other")
    mse: float = Field(
        2.4,
        ge=0.0,
        le=8.0,
        description="exponent of the error that each group's scale is searched for; 0: no search",
    )
    gptaq_alpha: float = Field(
        0.0, ge=0.0, le=1.0, description="share of a layer's input error corrected; 0 is GPTQ"
    )
    damp_percent: float = Field(0.05, gt=0.0, lt=1.0, description="of the mean Hessian diagonal")
    damp_auto_increment: float = Field(
        0.01, gt=0.0, lt=1.0, description="added at each try to invert the Hessian"
    )
    overrides: tuple[Override, ...] = Field(
        (), description="other mse, damp_percent or act_group_aware for some layers; first match"
    )
    calibration_rows: Positive = Field(
        128, description="training conversations and general texts together"
    )
    calibration_length: int = Field(512, ge=16, le=32768, description="tokens; longer rows are cut")
    general_share: Fraction = Field(
        0.33, description="share of calibration_rows that is old text nobody measures on"
    )
    calibration_min_tokens: Positive | None = Field(
        None, description="refused below; null: the in_features of the widest layer"
    )

    @field_validator("bits", mode="before")
    @classmethod
    def _packs(cls, bits: Any) -> Any:
        if bits in (5, 6, 7):
            raise ValueError(
                "Expected 2, 3, 4 or 8: what loads GPTQ's format unpacks no other "
                "number; between 4 and 8 bits lie a smaller group_size and eora_rank"
            )
        return bits

    @model_validator(mode="after")
    def _one_order(self) -> Self:
        asked = self.act_group_aware and "act_group_aware" in self.model_fields_set
        asked = asked or any(each.act_group_aware for each in self.overrides)
        if self.desc_act and asked:
            raise ValueError(
                "act_group_aware: true with desc_act=true are two orders of the columns; "
                "set one of them to false"
            )
        return self


class Candidate(Section):
    """Fields of `requantize_gptq` that one of several tries changes."""

    method: Literal["gptq", "auto_round"] | None = None
    auto_round_iterations: Positive | None = None
    group_size: Literal[-1, 16, 32, 64, 128] | None = None
    desc_act: bool | None = None
    act_group_aware: bool | None = None
    symmetric: bool | None = None
    mse: float | None = Field(None, ge=0.0, le=8.0)
    gptaq_alpha: float | None = Field(None, ge=0.0, le=1.0)
    damp_percent: float | None = Field(None, gt=0.0, lt=1.0)
    eora_rank: int | None = Field(None, ge=0, le=256)
    calibration_rows: Positive | None = None
    general_share: Fraction | None = None

    def chosen(self) -> dict[str, Any]:
        """Return what was changed."""
        return self.model_dump(exclude_none=True)


class QuantizeBase(GptqFields):
    """The cheap base the adapter is trained on; all but enabled, method and limit is of gptq only.

    SmolLM2-135M-Instruct is 0.30 nats per token from its NF4 (69% agreement), 0.021 from int8.
    """

    enabled: bool = Field(
        True, description="false trains on the original", json_schema_extra=NOT_IN_KEY
    )
    method: Literal["nf4", "int8", "gptq"] = Field("nf4", description="bitsandbytes or GPTQModel")
    fidelity_max_kl: Relative = Field(
        1.0, description="nats per token, original against quantized base"
    )


class RequantizeGptq(GptqFields):
    """GPTQ of the 16-bit result, calibrated on the training distribution and on old text.

    SmolLM2-135M after a night is 0.07 to 0.30 nats per token from its 4 bit (groups of 64; nights
    of docstrings, cities, pronunciations and emoji names), where rounding to the nearest is 0.43
    to 2.9 away.
    """

    enabled: bool = Field(True, json_schema_extra=NOT_IN_KEY)
    method: Literal["gptq", "auto_round"] = Field(
        "gptq",
        description="who rounds, into the same format; auto_round takes bits, group_size, "
        "symmetric and the calibration, and has no desc_act or gptaq_alpha",
    )
    auto_round_iterations: Positive = Field(
        200, description="of auto_round, for each block; its time grows with them"
    )
    candidates: tuple[Candidate, ...] = Field(
        (), description="tries that change these fields; the one closest to 16 bit is shipped"
    )
    eora_rank: int = Field(
        0,
        ge=0,
        le=256,
        description="of a LoRA beside the 4-bit model that gives back what rounding took (EoRA); "
        "servers must load it, from eora/; 0: none",
    )
    candidate_rows: Positive = Field(
        64, description="training rows that calibrate no candidate, on which they are compared"
    )
    tensor_parallel: Positive = Field(
        1,
        description="GPUs a server splits the model over; checked, not written",
        json_schema_extra=NOT_IN_KEY,
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="of what is not quantized; auto keeps each tensor's own, and of a float32 "
        "master takes the original's (bfloat16 where that is float32 too)",
    )
    fidelity_rows: Positive = Field(
        16, description="held-out conversations the loss is measured on"
    )
    fidelity_max_kl: Relative = Field(0.5, description="nats per token, 16 bit against 4 bit")
    fidelity_max_gain_lost: Relative = Field(
        1.0,
        description="share of the night's gain that rounding may take, in loss on held-out text; "
        "refused where it is shown to take more (95 %, over the texts)",
    )
    fidelity_max_rtn_ratio: Relative = Field(
        1.0,
        description="KL over that of rounding to nearest on the same grid, uncalibrated; refused "
        "where it is shown to be more (95 %, over the texts)",
    )

    def tried(self) -> tuple[Self, ...]:
        """Return what is quantized by: the section with each candidate's fields, or itself."""
        candidates = (self.model_copy(update=each.chosen()) for each in self.candidates)
        return tuple(candidates) or (self,)

    @field_validator("method", mode="before")
    @classmethod
    def _who_rounds(cls, method: Any) -> Any:
        if method == "best_of":
            raise ValueError(
                "Expected gptq or auto_round: the best of several is what "
                "requantize_gptq.candidates ships; list them there"
            )
        return method

    @model_validator(mode="after")
    def _of_its_method(self) -> Self:
        for fields in (self, *self.tried()):
            if fields.method == "auto_round" and (fields.desc_act or fields.gptaq_alpha):
                raise ValueError(
                    f"method: auto_round has no desc_act={str(fields.desc_act).lower()} or "
                    f"gptaq_alpha={fields.gptaq_alpha:g}; set them to false and 0, or method: gptq"
                )
        if self.overrides and all(fields.method == "auto_round" for fields in self.tried()):
            raise ValueError(
                "overrides: are GPTQ's, and nothing is rounded by it with method: auto_round; "
                "remove them, or set method: gptq"
            )
        return self
