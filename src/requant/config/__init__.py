"""One typed configuration: frozen; unknown keys and contradictions refused when it is built."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from requant.config.operations import Deploy, Promote, Runtime, Tracking
from requant.config.sections import (
    ContinueTrain,
    Evaluate,
    MergeFp16,
    PrepareBase,
    PrepareData,
    QuantizeBase,
    RequantizeGptq,
    Section,
    TrainAdapter,
)

StageName = Literal[
    "prepare_data",
    "prepare_base",
    "quantize_base",
    "train_adapter",
    "merge_fp16",
    "continue_train",
    "requantize_gptq",
    "evaluate",
]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)
"""In the order of the chain."""


class Config(Section):
    """Everything a night needs. One section per stage, then where and how it runs."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$", description="of the model line, in MLflow too"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of every shuffle and initialisation")
    state: Path = Field(Path(".requant"), description="folder of artifacts, records and databases")

    prepare_base: PrepareBase
    prepare_data: PrepareData
    quantize_base: QuantizeBase = QuantizeBase()
    train_adapter: TrainAdapter
    merge_fp16: MergeFp16 = MergeFp16()
    continue_train: ContinueTrain
    requantize_gptq: RequantizeGptq = RequantizeGptq()
    evaluate: Evaluate = Evaluate()
    promote: Promote = Promote()
    deploy: Deploy = Deploy()

    runtime: Runtime = Runtime()
    tracking: Tracking = Tracking()

    def runs(self, stage: str) -> bool:
        """Tell whether a stage is switched on; the preparing ones have no switch."""
        return bool(getattr(getattr(self, stage), "enabled", True))

    @model_validator(mode="after")
    def _stages_fit_together(self) -> "Config":
        quantized = self.quantize_base.method if self.quantize_base.enabled else None
        method = self.train_adapter.method
        trains = self.train_adapter.enabled
        if trains and method == "dora" and quantized in {"gptq", "int8"}:
            raise ValueError(
                f"train_adapter.method: 'dora' cannot train on quantize_base.method={quantized!r} "
                "(peft refuses it); valid with dora: quantize_base.method=nf4 or "
                "quantize_base.enabled=false"
            )
        if trains and "all-linear" in self.train_adapter.target_modules and quantized == "gptq":
            raise ValueError(
                "train_adapter.target_modules: 'all-linear' finds no layer on a GPTQ base; "
                "name the layers, e.g. [q_proj, v_proj]"
            )
        if self.merge_fp16.enabled != trains:
            harm = "lose the adapter" if trains else "merge nothing"
            raise ValueError(
                f"merge_fp16.enabled: {self.merge_fp16.enabled} with train_adapter.enabled="
                f"{trains}: the chain would {harm}; set merge_fp16.enabled={str(trains).lower()}"
            )
        for section in ("train_adapter", "continue_train"):
            batch = getattr(self, section).optimisation.batch_size
            if self.runs(section) and batch % self.runtime.ranks:
                raise ValueError(
                    f"{section}.optimisation.batch_size: {batch} cannot be shared by "
                    f"runtime.ranks={self.runtime.ranks}; give a multiple of it"
                )
        if self.quantize_base.enabled and not trains:
            raise ValueError(
                "quantize_base.enabled: true with train_adapter.enabled=false quantizes a base "
                "that nothing uses; set quantize_base.enabled=false"
            )
        return self


__all__ = ["STAGE_NAMES", "Config", "Section", "StageName"]
