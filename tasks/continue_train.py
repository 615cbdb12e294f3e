"""The Prefect task of the stage continue_train."""

from requant.stages.continue_train import STAGE
from tasks.policy import ACCELERATOR, stage_task

continue_train = stage_task(STAGE, tags=[ACCELERATOR])
