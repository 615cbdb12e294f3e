"""What one benchmark found."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Measurement:
    """A claim and the figures it was measured by."""

    claim: str
    measured: str
    limit: str
    holds: bool


def timed_process(arguments: list[str], home: Path) -> float:
    """Run Python with `arguments` and its own Prefect home; return its wall time in seconds.

    Raises:
        RuntimeError: With the output, if the process fails.
    """
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{arguments}: failed:\n{process.stdout}{process.stderr}")
    return seconds


def requant_arguments(state: Path, *overrides: str) -> list[str]:
    """Spell `requant run configs/tiny.yaml` with a state folder of its own."""
    run = "from requant.cli import app; app()"
    settings = [word for item in (f"state={state}", *overrides) for word in ("--set", item)]
    return ["-c", run, "run", "configs/tiny.yaml", *settings]


class Silent:
    """A reporter that nobody hears."""

    def metrics(self, *_: object, **__: object) -> None: ...
    def progress(self, *_: object, **__: object) -> None: ...
    def message(self, *_: object, **__: object) -> None: ...
