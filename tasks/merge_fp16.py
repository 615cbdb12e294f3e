"""The Prefect task of the stage merge_fp16."""

from requant.stages.merge_fp16 import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

merge_fp16 = stage_task(STAGE, tags=[ACCELERATOR])
