"""The Prefect task of the stage evaluate."""

from requant.stages.evaluate import STAGE
from tasks.policy import ACCELERATOR, stage_task

evaluate = stage_task(STAGE, tags=[ACCELERATOR])
