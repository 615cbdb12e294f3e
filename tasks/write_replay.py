"""The Prefect task of the stage write_replay."""

from requant.stages.write_replay import STAGE
from tasks.stage_task import ACCELERATOR, stage_task

write_replay = stage_task(STAGE, tags=[ACCELERATOR])
