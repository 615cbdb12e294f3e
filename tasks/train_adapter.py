"""The Prefect task of the stage train_adapter."""

from requant.stages.train_adapter import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

train_adapter = stage_task(STAGE, tags=[ACCELERATOR])
