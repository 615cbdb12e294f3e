"""The Prefect task of the stage requantize_gptq."""

from requant.stages.requantize_gptq import STAGE
from tasks.policy import ACCELERATOR, stage_task

requantize_gptq = stage_task(STAGE, tags=[ACCELERATOR])
