"""A stage in its own process: the same outcome, and what kills it is an error like any other."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from requant.errors import ParityError, RequantError, TerminalError, TransientError
from requant.execution.launcher import Launch, in_own_process
from requant.execution.stage import StageContext
from requant.redaction import redactor
from tests.stages.conftest import SilentReporter, make_context
from tests.support.alive import gone
from tests.support.verb_stage import STAGE, Verb


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return make_context(tmp_path, seed=7)


def launched(context: StageContext, verb: str, minutes: float | None = None) -> dict[str, float]:
    launch = Launch(log=context.work.parent / "logs" / "stage.1.log", minutes=minutes)
    return in_own_process(STAGE, launch)(Verb(verb=verb), context)


def test_its_words_reach_the_reporter_and_the_log(context: StageContext) -> None:
    assert launched(context, "talk") == {"seed": 7.0}
    assert (context.out / "verb.txt").read_text() == "talk"
    assert isinstance(context.reporter, SilentReporter)
    assert sorted(context.reporter.messages) == ["complained", "printed", "said"]
    assert context.reporter.points == [(3, {"loss": 0.5})]
    assert context.reporter.steps == [(1, 2, "steps")]
    log = (context.work.parent / "logs" / "stage.1.log").read_text().splitlines()
    assert sorted(log) == ["complained", "printed", "said"]


@pytest.mark.parametrize(
    ("verb", "kind", "text"),
    [
        ("refuse", ParityError, "^over the limit$"),
        ("reset", TransientError, "^ConnectionResetError: peer$"),
        ("trip", TerminalError, "^ZeroDivisionError: by zero$"),
        ("killed", TransientError, "killed by SIGKILL, most likely the machine ran out of memory"),
        ("fault", TransientError, "killed by SIGSEGV, a fault of a native library or driver"),
        ("exit", TerminalError, "(?s)ended with status 3 and without a result.*last words"),
    ],
)
def test_how_it_ends_is_the_error(
    context: StageContext, verb: str, kind: type[RequantError], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        launched(context, verb)
    assert type(caught.value) is kind


def test_no_secret_leaves_it_over_the_end_of_a_line_or_of_what_is_told(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "pl4nt3d~s3cr3t~0f~hub"
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-the-parent-alone")
    log = context.work.parent / "stage.log"
    launch = Launch(log, redact=redactor([token]), without={"MLFLOW_TRACKING_TOKEN", "T"})
    with pytest.raises(TerminalError, match=r"^RuntimeError: x+\*\*\* ... \((\d+) more") as caught:
        in_own_process(STAGE, launch)(Verb(verb="leak"), context)
    assert str(caught.value).endswith(f"characters are in {log})")
    said = log.read_text().splitlines()
    # Nothing is lost beside it.
    assert said[:4] == ["before", "***", "after", "got"]
    assert said[-1] == f"RuntimeError: {'x' * 3490}***"
    assert isinstance(context.reporter, SilentReporter)
    assert context.reporter.messages == said
    for text in (str(caught.value), log.read_text()):
        assert not any(token[at : at + 5] in text for at in range(len(token) - 4))


def test_what_it_says_before_a_pause_can_be_read_during_it(context: StageContext) -> None:
    launch = Launch(context.work.parent / "s.log", redact=redactor(["a long one"]), minutes=0.5)
    assert isinstance(context.reporter, SilentReporter)
    messages = context.reporter.messages

    def end_the_pause() -> None:
        while not messages:
            time.sleep(0.05)
        os.kill(int((context.work / "child").read_text()), signal.SIGKILL)

    watching = threading.Thread(target=end_the_pause, daemon=True)
    watching.start()
    # Its time limit would come first.
    in_own_process(STAGE, launch)(Verb(verb="pause"), context)
    assert messages == ["pausing"]


def test_a_time_limit_ends_it_and_what_it_started(context: StageContext) -> None:
    started = time.monotonic()
    with pytest.raises(TerminalError, match=r"took longer than runtime.stage_minutes=0.05"):
        launched(context, "hang", minutes=0.05)
    assert time.monotonic() - started < 10
    assert gone(int((context.work / "child").read_text()))


def test_what_interrupts_the_caller_ends_it(context: StageContext) -> None:
    import _thread

    def interrupt() -> None:
        while not (context.work / "child").exists():
            time.sleep(0.05)
        _thread.interrupt_main()

    # A shell starts what runs in its background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launched(context, "hang")
    finally:
        signal.signal(signal.SIGINT, before)
    assert gone(int((context.work / "child").read_text()))
