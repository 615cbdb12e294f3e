"""Nights that train long enough to be killed."""

from typing import Any

from tests.e2e.machine import Machine, eventually

STEPS = 320
CHECKPOINT = 10
LONG = {
    "train_adapter": {
        "optimisation": {
            "max_steps": STEPS,
            "batch_size": 16,
            "max_length": 96,
            "checkpoint_steps": CHECKPOINT,
        }
    },
    # Over the 83 tokens it is measured on here, rounding alone comes to 1.5e-6.
    "merge_fp16": {"trained_max_kl": 5.0, "parity_max_kl": 1e-5},
    "continue_train": {"enabled": False},
    "requantize_gptq": {"enabled": False},
    "evaluate": {"enabled": False},
    "promote": {"enabled": False, "auto": False},
}
"""A night whose training takes long enough to be killed in, and that ends soon after."""


def long_night(machine: Machine, seed: int, launcher: str = "inline", **more: Any) -> str:
    """Start a night whose training has not been done yet, and wait until it trains."""
    config = machine.config(**LONG, **more)
    config["train_adapter"]["alpha"] = 8 + seed
    config["runtime"]["launcher"] = launcher
    run = machine.start(config)
    machine.wait_for_log(run, f"for {STEPS} steps")
    return run


def wait_for_checkpoint(machine: Machine, run: str) -> int:
    return max(eventually("a checkpoint", lambda: machine.checkpoints(run)))


def resumed_at(machine: Machine, run: str) -> int:
    """Return the step a training went on from, as its log says."""
    log = machine.log(run)
    return int(log.rpartition("resuming from checkpoint-")[2].split()[0])
