"""How far a stage is: counted, timed, and told at a bounded rate with or without a terminal."""

import logging
from typing import Any, cast

import pytest

from requant.execution.progress import Pace, done_line, progress_line, told
from tasks import tracking
from tasks.nightly.reporter import LOGGED_SECONDS, TaskReporter


class Heard:
    def __init__(self) -> None:
        self.steps: list[tuple[int, int, str]] = []

    def progress(self, done: int, total: int, unit: str) -> None:
        self.steps.append((done, total, unit))

    def metrics(self, values: Any, step: int) -> None: ...

    def message(self, text: str) -> None: ...


def test_an_item_counts_once_it_is_worked_off() -> None:
    heard = Heard()
    items = told(["a", "b"], heard, "rows")
    assert next(items) == "a" and heard.steps == []
    assert list(items) == ["b"]
    assert heard.steps == [(1, 2, "rows"), (2, 2, "rows")]


def test_time_left_comes_from_the_speed_of_the_same_work() -> None:
    pace = Pace()
    assert pace.seconds_left(20, 60, "steps", now=100.0) is None, "resumed: no speed is known yet"
    assert pace.seconds_left(30, 60, "steps", now=110.0) == pytest.approx(30.0)
    assert pace.seconds_left(1, 8, "texts", now=500.0) is None, "other work has another speed"
    assert pace.seconds_left(3, 8, "texts", now=504.0) == pytest.approx(10.0)
    assert pace.seconds_left(1, 8, "texts", now=600.0) is None, "the same work, once more"


def test_lines_are_worded_for_a_person() -> None:
    line = progress_line("train_adapter", 34, 60, "steps", 130.0)
    assert line == "train_adapter  running  34 of 60 steps, 2 min 10 s left"
    assert progress_line("evaluate", 1, 2000, "requests", None).endswith("1 of 2,000 requests")
    assert progress_line("merge_fp16", 5, 5, "shards", 0.0).endswith("5 of 5 shards")
    line = done_line("train_adapter", "done", 150.0, "loss 3.6 → 2.85")
    assert line == "train_adapter  done  2 min 30 s  loss 3.6 → 2.85"
    assert done_line("prepare_data", "cached", None, "") == "prepare_data  cached"


def test_without_a_terminal_a_stage_says_a_line_in_twenty_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seconds = iter(range(1000))
    logger = logging.getLogger("test-progress")
    # Progress never touches the run.
    run = cast(tracking.TrackingRun, None)
    with (
        caplog.at_level(logging.INFO, logger.name),
        TaskReporter("train_adapter", logger, run, clock=lambda: float(next(seconds))) as reporter,
    ):
        for step in range(1, 61):
            reporter.progress(step, 60, "steps")
    assert LOGGED_SECONDS == 20
    assert caplog.messages == [
        "train_adapter  running  20 of 60 steps, 40 s left",
        "train_adapter  running  40 of 60 steps, 20 s left",
        "train_adapter  running  60 of 60 steps",
    ]
