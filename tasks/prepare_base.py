"""The Prefect task of the stage prepare_base."""

from requant.stages.prepare_base import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

prepare_base = stage_task(STAGE, tags=[ACCELERATOR])
