"""A night through Prefect, MLflow and the store against the same library calls made bare."""

import tempfile
from pathlib import Path

from benchmarks.measurement import Measurement, requant_arguments, timed_process

LIMIT = 1.15

BARE = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from benchmarks.measurement import Silent
from flows.incremental_training import chain
from requant.config.loading import load_config
from requant.execution.stage import StageContext
from requant.execution.walk import walk

config = load_config(Path("configs/tiny.yaml"))
root = Path(sys.argv[1])

class Bare:
    def take(self, task, section, inputs):
        out, work = root / task.stage.name, root / f"{task.stage.name}.work"
        out.mkdir(), work.mkdir()
        context = StageContext(out, work, config.seed, "cpu", Silent())
        task.stage.execute(section, context, **inputs)
        return out

    def past(self, use, tonight):
        return {}

walk(chain, config, Bare())
"""


def measure() -> Measurement:
    """Run the demo's night both ways, each in a process of its own, imports included."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bare").mkdir()
        bare = timed_process(["-c", BARE, str(folder / "bare")], folder / "prefect")
        night = requant_arguments(folder / "state")
        # A machine makes its databases once, not every night.
        timed_process(["init" if word == "run" else word for word in night], folder / "prefect")
        pipeline = timed_process(night, folder / "prefect")
    return Measurement(
        claim="a night, against the bare library calls",
        measured=f"{pipeline / bare:.3f}x ({pipeline:.1f} s against {bare:.1f} s)",
        limit=f"<= {LIMIT}x",
        holds=pipeline <= LIMIT * bare,
    )
