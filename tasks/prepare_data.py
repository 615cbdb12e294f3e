"""The Prefect task of the stage prepare_data."""

from requant.stages.prepare_data import STAGE
from tasks.stage_task import stage_task

prepare_data = stage_task(STAGE)
