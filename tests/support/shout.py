"""A stage of one word, performed in this process or in a child."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess

from requant.config.section import Section
from requant.errors import TransientError
from requant.execution.key import stage_key
from requant.execution.perform import perform
from requant.execution.stage import Metrics, Stage, StageContext
from requant.store import Store


class Silent:
    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, done: int, total: int, unit: str) -> None: ...
    def message(self, text: str) -> None: ...


class Telling(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class Shout(Section):
    word: str
    times: int = 1


def shout(section: Shout, context: StageContext) -> Metrics:
    (context.work / "started").touch()
    with (context.work.parent.parent / "executions").open("a") as file:
        file.write(f"{section.word}\n")
    for time_ in range(section.times):
        (context.out / f"{time_}.txt").write_text(section.word.upper())
        context.reporter.metrics({"loudness": time_ * 2.0}, time_)
    if section.word == "slow":
        time.sleep(1)
    if section.word == "long":
        time.sleep(3)
    if section.word == "fail":
        raise TransientError("the server is away")
    if section.word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"letters": float(len(section.word))}


STAGE = Stage("shout", 1, "dataset", ("pydantic",), shout)


def run(store: Store, section: Shout, force: bool = False, line: str = "tiny"):
    return perform(
        store,
        STAGE,
        stage_key(STAGE, section, {}, seed=0),
        section,
        {},
        seed=0,
        device="cpu",
        reporter=Silent(),
        force=force,
        labels={"pipeline": line},
    )


def child(store: Store, word: str, force: bool = False) -> ForkServerProcess:
    """Perform the stage in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run, args=(store, Shout(word=word), force))
    process.start()
    return process


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def executions(store: Store) -> int:
    path = store.root / "executions"
    return len(path.read_text().splitlines()) if path.exists() else 0
