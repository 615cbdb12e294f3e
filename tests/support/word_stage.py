"""A stage of one word, to watch Prefect's caching, retries and locks without a model."""

import base64
import errno
import inspect
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

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
    enabled: bool = True


def execute(section: Word, context: StageContext) -> Metrics:
    tries = context.work.parent.parent / f"tries-{section.text}"
    with tries.open("a") as file:
        file.write("x")
    verb, _, count = section.text.partition("-")
    if verb == "flaky" and len(tries.read_text()) <= int(count):
        raise TransientError("the server is away")
    if verb == "oserror" and len(tries.read_text()) <= int(count):
        raise ConnectionResetError("peer")
    if verb == "leak":
        leak(count)
    if verb == "terminal":
        raise TerminalError("this can never work")
    while verb == "held" and not (tries.parent / "go").exists():
        time.sleep(0.1)
    said = "\n".join(_files_passed()) if verb == "stack" else section.text
    (context.out / "word.txt").write_text(said)
    return {"letters": float(len(section.text))}


def leak(kind: str) -> None:
    """Say a secret of the environment in the ways libraries do, and fail."""
    token = os.environ["HF_TOKEN"]
    encoded = base64.b64encode(f"user:{token}".encode()).decode()
    if kind == "printed":
        print(f"marker-in-the-log {token} {encoded}\n{token[:9]}\n{token[9:]}", flush=True)
    logging.getLogger("prefect.flow_runs").warning("marker-in-the-log %s", [token, encoded])
    try:
        raise ValueError(f"401 for Authorization: Basic {encoded}")
    except ValueError as error:
        if kind == "cause":
            raise TerminalError("the hub said no") from error
    raise (
        OSError(errno.EIO, f"marker-in-the-error {token!r}")
        if kind == "io"
        else RuntimeError(f"marker-in-the-error {token.encode().hex()}")
    )


def _files_passed() -> list[str]:
    """List the files of this project that called the stage, outermost first."""
    frames = [Path(frame.filename) for frame in reversed(inspect.stack())]
    ours = [str(path.relative_to(ROOT)) for path in frames if path.is_relative_to(ROOT)]
    library = (name for name in ours if name.startswith(("src/", "flows/", "tasks/")))
    return list(dict.fromkeys(library))


# The task reads its section from the configuration by the stage's name, so it borrows one.
STAGE = Stage("evaluate", 1, "evaluation", (), execute)
WORD = stage_task(STAGE)


def tries(state: Path, text: str) -> int:
    path = state / f"tries-{text}"
    return len(path.read_text()) if path.exists() else 0


def word_config(state: Path, text: str, **sections: Any) -> Config:
    return micro_config(state, **sections).model_copy(update={"evaluate": Word(text=text)})


def open_night(state: Path, text: str, force: bool = False, **sections: Any) -> Night:
    """Open a night of the one stage, in the current flow run."""
    config = word_config(state, text, **sections)
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
def take(state: str, text: str, launcher: str = "inline") -> None:
    """Run the one stage as a night takes it from the walk of its chain, and close the night."""
    runtime = {"device": "cpu", "retries": 0, "launcher": launcher}
    night = open_night(Path(state), text, runtime=runtime)
    opened = OpenNight(night)
    try:
        opened.take(WORD, night.config.evaluate, {})
    except Exception:
        opened.close("FAILED")
        raise


if __name__ == "__main__":
    print(say(*sys.argv[1:]))
