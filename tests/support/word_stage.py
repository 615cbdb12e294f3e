"""A stage of one word, to watch Prefect's caching, retries and locks without a model."""

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
from tasks.stage_task import Night, run_stage_task, stage_task
from tests.support.chain import micro_config


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
    if verb == "slow":
        time.sleep(float(count))
    (context.out / "word.txt").write_text(section.text)
    return {"letters": float(len(section.text))}


# The task reads its section from the configuration by the stage's name, so it borrows one.
WORD = stage_task(Stage("evaluate", 1, "evaluation", (), execute))


def tries(state: Path, text: str) -> int:
    path = state / f"tries-{text}"
    return len(path.read_text()) if path.exists() else 0


def word_config(state: Path, text: str) -> Config:
    return micro_config(state).model_copy(update={"evaluate": Word(text=text)})


@flow
def say(state: str, text: str, force: bool = False) -> str:
    """Run the one stage; return the name of its final state."""
    config = word_config(Path(state), text)
    store = Store(Path(state))
    uri = tracking.prepare_database(None, store.root)
    parent = tracking.open_parent(uri, "words", flow_run_id=text, name=text, params={})
    night = Night(config, store, frozenset({"evaluate"} if force else ()), parent, time.time())
    key = stage_key(WORD.stage, config.evaluate, {}, seed=0)
    _, final = run_stage_task(WORD, night, key, {})
    return final.name or ""


if __name__ == "__main__":
    print(say(*sys.argv[1:]))
