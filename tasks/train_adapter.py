"""The Prefect task of the stage train_adapter."""

from requant.stages.train_adapter import STAGE
from tasks.policy import ACCELERATOR, stage_task

train_adapter = stage_task(STAGE, tags=[ACCELERATOR])
