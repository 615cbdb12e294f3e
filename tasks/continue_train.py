"""The Prefect task of the stage continue_train."""

from requant.stages.continue_train import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

continue_train = stage_task(STAGE, tags=[ACCELERATOR])
