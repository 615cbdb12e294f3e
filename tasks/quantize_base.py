"""The Prefect task of the stage quantize_base."""

from requant.stages.quantize_base import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

quantize_base = stage_task(STAGE, tags=[ACCELERATOR])
