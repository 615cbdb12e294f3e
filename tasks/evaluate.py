"""The Prefect task of the stage evaluate."""

from requant.stages.evaluate import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

evaluate = stage_task(STAGE, tags=[ACCELERATOR])
