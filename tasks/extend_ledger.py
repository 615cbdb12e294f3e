"""The Prefect task of the stage extend_ledger."""

from requant.stages.extend_ledger import STAGE
from tasks.stage_task import stage_task

extend_ledger = stage_task(STAGE)
