"""The Prefect task of the stage collect_rows."""

from requant.stages.collect_rows import STAGE
from tasks.stage_task import stage_task

collect_rows = stage_task(STAGE)
