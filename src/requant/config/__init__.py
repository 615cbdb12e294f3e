"""One typed configuration: frozen; unknown keys and contradictions refused when it is built."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from requant.config.base import PrepareBase
from requant.config.collecting import CollectRows, ExtendLedger
from requant.config.data import PrepareData, WriteReplay
from requant.config.evaluation import Evaluate
from requant.config.fit import check_stages_fit
from requant.config.generations import Generations
from requant.config.merge import MergeFp16
from requant.config.operations import Deploy, Promote, Runtime, Tracking
from requant.config.quantizing import QuantizeBase, RequantizeGptq
from requant.config.section import LocalPath, Section
from requant.config.training import ContinueTrain, TrainAdapter, TrainOnGrid

StageName = Literal[
    "prepare_base",
    "write_replay",
    "collect_rows",
    "extend_ledger",
    "prepare_data",
    "quantize_base",
    "train_adapter",
    "merge_fp16",
    "continue_train",
    "requantize_gptq",
    "train_on_grid",
    "evaluate",
]
STAGE_NAMES: tuple[StageName, ...] = get_args(StageName)
"""In the order of the chain."""
SHIPPING: tuple[StageName, ...] = ("requantize_gptq", "train_on_grid")
"""Those whose model may be registered and serve; a night runs one of them at most."""


class Config(Section):
    """Everything a night needs. One section per stage, then where and how it runs."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
        max_length=100,
        description="of the model line, in MLflow too",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of every shuffle and initialisation")
    state: LocalPath = Field(
        Path(".requant"), description="folder of artifacts, records and databases"
    )

    prepare_base: PrepareBase
    write_replay: WriteReplay = WriteReplay()
    collect_rows: CollectRows = CollectRows()
    extend_ledger: ExtendLedger = ExtendLedger()
    generations: Generations = Generations()
    prepare_data: PrepareData
    quantize_base: QuantizeBase = QuantizeBase()
    train_adapter: TrainAdapter
    merge_fp16: MergeFp16 = MergeFp16()
    continue_train: ContinueTrain
    requantize_gptq: RequantizeGptq = RequantizeGptq()
    train_on_grid: TrainOnGrid = TrainOnGrid.model_validate({})
    evaluate: Evaluate = Evaluate()
    promote: Promote = Promote()
    deploy: Deploy = Deploy()

    runtime: Runtime = Runtime()
    tracking: Tracking = Tracking()

    def runs(self, stage: str) -> bool:
        """Tell whether a stage is switched on; the preparing ones have no switch."""
        switch = "collect_rows" if stage == "extend_ledger" else stage
        return bool(getattr(getattr(self, switch), "enabled", True))

    @property
    def ships(self) -> StageName:
        """The stage whose model is registered, and may serve."""
        return "train_on_grid" if self.train_on_grid.enabled else "requantize_gptq"

    @model_validator(mode="after")
    def _stages_fit_together(self) -> "Config":
        check_stages_fit(self)
        return self


__all__ = ["SHIPPING", "STAGE_NAMES", "Config", "Section", "StageName"]
