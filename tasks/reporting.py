"""Where a running stage's words go: Prefect's log, MLflow's curves, a bar on a terminal."""

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from requant.errors import RequantError
from requant.quiet import quiet_logs
from tasks import tracking

LOGGED_SECONDS = 60
"""Between two lines of progress in the log, where no terminal shows a bar."""


class TaskReporter:
    """A `requant.stage.Reporter`, open for the length of one attempt."""

    def __init__(
        self,
        stage: str,
        logger: "logging.Logger | logging.LoggerAdapter[Any]",
        run: tracking.TrackingRun,
    ) -> None:
        self._logger = logger
        self._run = run
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._logged = time.monotonic()
        self._row = self._bar.add_task(stage, total=None, unit="", visible=False)

    def __enter__(self) -> "TaskReporter":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        tracking.log_points(self._run, values, step)

    def progress(self, done: int, total: int, unit: str) -> None:
        self._bar.update(self._row, completed=done, total=total, unit=unit, visible=True)
        if self._bar.disable and time.monotonic() - self._logged >= LOGGED_SECONDS:
            self._logged = time.monotonic()
            self._logger.info(f"{done} of {total} {unit}")

    def message(self, text: str) -> None:
        self._logger.info(text)


def quiet_libraries() -> None:
    """Keep words nobody can act on out of Prefect's log."""
    quiet_logs()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Let an error raised on purpose speak for itself: its text says what to do."""
    if record.exc_info and isinstance(record.exc_info[1], RequantError):
        record.exc_info = None
    return True
