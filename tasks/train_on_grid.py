"""The Prefect task of the stage train_on_grid."""

from requant.stages.train_on_grid import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

train_on_grid = stage_task(STAGE, tags=[ACCELERATOR])
