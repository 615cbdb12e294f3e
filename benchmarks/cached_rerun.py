"""A night in which nothing is to do, against a Prefect flow with nothing in it."""

import statistics
import tempfile
from pathlib import Path

from benchmarks.measurement import Measurement, requant_arguments, timed_process

LIMIT_SECONDS = 3.0
REPEATS = 5

# The night that is made first only has to exist: its artifacts are as large as the demo's.
SHORT = (
    "prepare_base.source.steps=10",
    "train_adapter.optimisation.max_steps=4",
    "continue_train.optimisation.max_steps=4",
)

EMPTY = """
from prefect import flow

@flow
def empty():
    pass

empty()
"""


def measure() -> Measurement:
    """Run both in turn, each in a process of its own, and compare the medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        night = requant_arguments(folder / "state", *SHORT)
        timed_process(night, folder / "prefect")
        pairs = [
            (
                timed_process(["-c", EMPTY], folder / "prefect"),
                timed_process(night, folder / "prefect"),
            )
            for _ in range(REPEATS)
        ]
    empty, cached = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Measurement(
        claim="a fully cached night, beyond an empty flow",
        measured=f"{cached - empty:+.2f} s ({cached:.2f} s against {empty:.2f} s)",
        limit=f"<= {LIMIT_SECONDS} s",
        holds=cached - empty <= LIMIT_SECONDS,
    )
