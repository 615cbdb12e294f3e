"""Which stages a configuration switches on: a new stage that is off by default changes no test."""

from requant.config import STAGE_NAMES, Config


def stages_on(config: Config) -> tuple[str, ...]:
    """List the stages that a night of the configuration runs, in the order of the chain."""
    return tuple(stage for stage in STAGE_NAMES if config.runs(stage))


def all_stages(state: str, config: Config) -> dict[str, str]:
    """Return what a command's table says where every stage that is on came to the same state."""
    return {stage: state if config.runs(stage) else "off" for stage in STAGE_NAMES}
