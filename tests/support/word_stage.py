"""A stage of one word, to watch Prefect's caching, retries and locks without a model."""

import inspect
import sys
import time
from pathlib import Path

from prefect import flow

from requant.config import Config
from requant.config.section import Section
from requant.errors import TerminalError, TransientError
from requant.execution.key import stage_key
from requant.execution.stage import Metrics, Stage, StageContext
from requant.store import Store
from tasks import tracking
from tasks.nightly.night import OpenNight
from tasks.stage_task import Night, run_stage_task, stage_task
from tests.support.chain import micro_config

ROOT = Path(__file__).parents[2]


class Word(Section):
    """What the stage does: its text is `<verb>` or `<verb>-<count>`."""

    text: str


def execute(section: Word, context: StageContext) -> Metrics:
    tries = context.work.parent.parent / f"tries-{section.text}"
    with tries.open("a") as file:
        file.write("x")
    verb, _, count = section.text.partition("-")
    if verb == "flaky" and len(tries.read_text()) <= int(count):
        raise TransientError("the server is away")
    if verb == "oserror" and len(tries.read_text()) <= int(count):
        raise ConnectionResetError("peer")
    if verb == "terminal":
        raise TerminalError("this can never work")
    while verb == "held" and not (tries.parent / "go").exists():
        time.sleep(0.1)
    said = "\n".join(_files_passed()) if verb == "stack" else section.text
    (context.out / "word.txt").write_text(said)
    return {"letters": float(len(section.text))}


def _files_passed() -> list[str]:
    """List the files of this project that called the stage, outermost first."""
    frames = [Path(frame.filename) for frame in reversed(inspect.stack())]
    ours = [str(path.relative_to(ROOT)) for path in frames if path.is_relative_to(ROOT)]
    library = (name for name in ours if name.startswith(("src/", "flows/", "tasks/")))
    return list(dict.fromkeys(library))


# The task reads its section from the configuration by the stage's name, so it borrows one.
WORD = stage_task(Stage("evaluate", 1, "evaluation", (), execute))


def tries(state: Path, text: str) -> int:
    path = state / f"tries-{text}"
    return len(path.read_text()) if path.exists() else 0


def word_config(state: Path, text: str) -> Config:
    return micro_config(state).model_copy(update={"evaluate": Word(text=text)})


def open_night(state: Path, text: str, force: bool = False) -> Night:
    """Open a night of the one stage, in the current flow run."""
    config = word_config(state, text)
    store = Store(state)
    uri = tracking.prepare_database(None, store.root)
    parent = tracking.open_parent(uri, "words", flow_run_id=text, name=text, params={})
    return Night(config, store, frozenset({"evaluate"} if force else ()), parent, time.time())


@flow
def say(state: str, text: str, force: bool = False) -> str:
    """Run the one stage; return the name of its final state."""
    night = open_night(Path(state), text, force)
    key = stage_key(WORD.stage, night.config.evaluate, {}, seed=0)
    _, final = run_stage_task(WORD, night, key, {})
    return final.name or ""


@flow
def take(state: str, text: str) -> None:
    """Run the one stage as a night takes it from the walk of its chain."""
    night = open_night(Path(state), text)
    OpenNight(night).take(WORD, night.config.evaluate, {})


if __name__ == "__main__":
    print(say(*sys.argv[1:]))
