"""`make chaos N=10 SEED=1`: that many kills, or full disks, in each place; says every one."""

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.scenes import scenes


def main() -> int:
    """Play every scene; return 1 if something was not as in the undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="in each place")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="places whose name holds this")
    given = parser.parse_args()
    print(f"{given.kills} of each, seed {given.seed}; moments are shares of an undisturbed run")
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="requant-chaos-") as folder:
        for scene in scenes(Path(folder), given.kills, given.only):
            try:
                # Of each place its own, so that one alone can be played again.
                for strike in scene.play(random.Random(f"{given.seed} {scene.name}").random):
                    outcomes[strike.fault] += 1
                    print(f"{strike}; the plain run after it: equal bytes, whole", flush=True)
            except AssertionError as error:
                failures.append(f"{scene.name}: {error}")
                print(f"{scene.name}: FAILED: {error}", flush=True)
    for name, count in outcomes.items():
        print(f"{name:22} {count}")
    print(f"{sum(outcomes.values())} faults, {len(failures)} failed, in {_since(started)}")
    return 1 if failures else 0


def _since(started: float) -> str:
    return f"{(time.monotonic() - started) / 60:.0f} minutes"


if __name__ == "__main__":
    raise SystemExit(main())
