"""The one figure of a stage that a person wants first."""

from requant.figures import figure
from requant.stages import STAGES
from requant.store import StageRecord


def headline(record: StageRecord) -> str:
    """Say the one or two figures of a stage that a person asks for first; empty without figures."""
    stage = STAGES.get(record.stage)
    for wording in stage.headline if stage else ():
        if text := wording(record.metrics):
            return text
    return ", ".join(
        f"{name} {figure(value)}" for name, value in sorted(record.metrics.items())[:2]
    )


def artifact_name(stage: str) -> str:
    """Return what a person calls the artifact of a stage, `adapter` of train_adapter."""
    return (STAGES[stage].artifact if stage in STAGES else "") or stage
