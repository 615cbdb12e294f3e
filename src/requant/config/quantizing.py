"""quantize_base and requantize_gptq: to how few bits, and how far from the original."""

from typing import Literal

from pydantic import Field

from requant.config.section import NOT_IN_KEY, Positive, Relative, Section


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
        1.0, description="nats per token, original against quantized base"
    )


class RequantizeGptq(Section):
    """GPTQ (Frantar et al. 2023) of the 16-bit result, calibrated on the training distribution.

    SmolLM2-135M-Instruct is 0.114 nats per token from its 4 bit (groups of 64, 87% agreement), 0.27
    of the 0.418 of rounding to nearest.
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
    fidelity_max_kl: Relative = Field(0.2, description="nats per token, 16 bit against 4 bit")
    fidelity_max_rtn_ratio: Relative = Field(
        1.0,
        description="KL over that of rounding to nearest on the same grid, uncalibrated; refused "
        "where it is shown to be more (95 %, over the texts)",
    )
