"""The process of one stage: `python -m requant.execution.child REQUEST EVENTS`; see `launcher`."""

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from requant.errors import is_transient
from requant.execution.launcher import load_request
from requant.execution.stage import StageContext
from requant.machine.library_noise import log_only_errors
from requant.machine.processes import die_with
from requant.store import Store

MAX_TEXT = 3500
"""Bytes of an error as JSON: one write of a line shorter than a pipe's 4096 bytes is never torn."""

PROGRESS_SECONDS = 0.2
"""Between two words of progress, the first and the last of a piece of work apart."""


class PipeReporter:
    """A `requant.execution.stage.Reporter` that writes one JSON object a line."""

    def __init__(self, events: TextIO, speaks: bool) -> None:
        self._events = events
        self._speaks = speaks
        self._told = 0.0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._send("metrics", values=dict(values), step=step)

    def progress(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        # A row is encoded in less time than a line takes through the pipe.
        if done in (1, total) or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._send("progress", done=done, total=total, unit=unit)

    def message(self, text: str) -> None:
        self._send("message", text=text)

    def done(self, metrics: Mapping[str, float]) -> None:
        """Tell the stage's final figures."""
        self._send("done", metrics=dict(metrics))

    def failed(self, error: BaseException) -> None:
        """Tell what went wrong, whichever rank it happened in."""
        self._speaks = True
        # Whole letters: who hears it looks for secrets in it.
        text = str(error).encode(errors="backslashreplace").decode()
        beginning = _beginning(text)
        self._send(
            "failed",
            error=type(error).__name__,
            text=beginning,
            left_out=len(text) - len(beginning),
            transient=is_transient(error),
        )

    def _send(self, event: str, **fields: Any) -> None:
        if self._speaks:
            self._events.write(json.dumps({"event": event, **fields}) + "\n")
            self._events.flush()


def _beginning(text: str) -> str:
    """Return as much of a text as `MAX_TEXT` allows."""
    beginning = text[:MAX_TEXT]
    while (over := len(json.dumps(beginning)) - MAX_TEXT) > 0:
        # Each letter takes at most twelve bytes, as the escapes of two halves.
        beginning = beginning[: -max(1, over // 12)]
    return beginning


def main(asked: Path, events: Path) -> int:
    """Execute the stage; return the exit status."""
    log_only_errors()
    rank = int(os.environ.get("RANK", "0"))
    with events.open("w") as pipe:
        reporter = PipeReporter(pipe, speaks=rank == 0)
        try:
            stage, section, request = load_request(asked)
            if request.device == "cuda" and "LOCAL_RANK" in os.environ:
                import torch

                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            out = request.out if rank == 0 else request.work / f"out-of-rank-{rank}"
            out.mkdir(exist_ok=True)
            context = StageContext(
                out,
                request.work,
                request.seed,
                request.device,
                reporter,
                store=None if request.store is None else Store(request.store),
                forced=request.forced,
                line=request.line,
            )
            reporter.done(stage.execute(section, context, **request.folders))
        except Exception as error:
            traceback.print_exc()
            reporter.failed(error)
            return 1
    return 0


if __name__ == "__main__":
    # Ranks are started by accelerate, which must not leave one behind.
    die_with(os.getppid())
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
