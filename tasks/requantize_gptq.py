"""The Prefect task of the stage requantize_gptq."""

from requant.stages.requantize_gptq import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

requantize_gptq = stage_task(STAGE, tags=[ACCELERATOR])
