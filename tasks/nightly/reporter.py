"""Where a running stage's words go: Prefect's log, MLflow's curves, a bar on a terminal."""

import logging
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from requant.errors import RequantError
from requant.execution.progress import Pace, progress_line
from requant.machine.library_noise import log_only_errors
from tasks import tracking

LOGGED_SECONDS = 20
"""Between two lines of progress of a stage in the log."""


class TaskReporter:
    """A `requant.execution.stage.Reporter`, open for the length of one attempt."""

    def __init__(
        self,
        stage: str,
        logger: "logging.Logger | logging.LoggerAdapter[Any]",
        run: tracking.TrackingRun,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._logger = logger
        self._run = run
        self._clock = clock
        self._pace = Pace()
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
        self._logged = clock()
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
        now = self._clock()
        left = self._pace.seconds_left(done, total, unit, now)
        # On a terminal too: Prefect's page has no bar, and a night is read the morning after.
        if now - self._logged >= LOGGED_SECONDS:
            self._logged = now
            self._logger.info(progress_line(self._stage, done, total, unit, left))

    def message(self, text: str) -> None:
        self._logger.info(text)


def keep_log_readable() -> None:
    """Keep words nobody can act on out of Prefect's log."""
    log_only_errors()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Let an error raised on purpose speak for itself: its text says what to do."""
    if record.exc_info and isinstance(record.exc_info[1], RequantError):
        record.exc_info = None
    return True
