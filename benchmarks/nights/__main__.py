"""Nine nights by every arm, and docs/nights.md of them: `make nights`, `make nights BASE=smollm2`.

    python -m benchmarks.nights [--base tiny|smollm2] [--seeds N] [--only ARM ...] [--folder DIR]

Whatever is done is not done again: stop it any time. Two arms run at once, a core each.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.nights.arms import ARMS, SIZES, Arm
from benchmarks.nights.report import write_report
from benchmarks.nights.run import FIRST, measure_arm, run_arm
from benchmarks.nights.texts import fetch
from requant.machine.library_noise import log_only_errors

BY_NAME = {arm.name: arm for arm in ARMS}
FOLDER = Path(".requant/nights")


def main() -> None:
    """Run what is missing, then write the page."""
    log_only_errors()
    words = argparse.ArgumentParser(prog="python -m benchmarks.nights")
    words.add_argument("--base", choices=SIZES, default="tiny")
    words.add_argument("--seeds", type=int, default=3, help="0, 1, ...")
    words.add_argument("--only", choices=BY_NAME, nargs="+", default=[*BY_NAME])
    words.add_argument("--folder", type=Path, default=FOLDER)
    words.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="processes")
    words.add_argument("--seed", type=int, help="run one arm of --only under this seed here")
    given = words.parse_args()
    if given.seed is not None:
        for name in given.only:
            run_arm(given.folder, given.base, BY_NAME[name], given.seed)
            measure_arm(given.folder, given.base, BY_NAME[name], given.seed)
        return
    fetch(given.folder / "packages")
    seeds = range(given.seeds)
    arms = [BY_NAME[name] for name in given.only]
    _side_by_side([(FIRST, seed) for seed in seeds], given)
    _side_by_side([(arm, seed) for seed in seeds for arm in arms if arm != FIRST], given)
    write_report(given.folder, given.base, [FIRST, *(a for a in arms if a != FIRST)], given.seeds)


def _side_by_side(work: Sequence[tuple[Arm, int]], given: argparse.Namespace) -> None:
    """Run arms in processes of their own.

    Raises:
        SystemExit: If one fails; the others of its kind come to their end.
    """

    def run(arm: Arm, seed: int) -> int:
        what = ["--base", given.base, "--folder", str(given.folder)]
        one = ["--only", arm.name, "--seed", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.nights", *what, *one]
        return subprocess.run(command, env=environment, check=False).returncode

    with ThreadPoolExecutor(given.at_once) as pool:
        codes = list(pool.map(lambda each: run(*each), work))
    if failed := [
        f"{arm.name}, seed {seed}" for (arm, seed), code in zip(work, codes, strict=True) if code
    ]:
        raise SystemExit(f"failed: {'; '.join(failed)}")


main()
