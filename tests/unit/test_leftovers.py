"""What a killed process left of a piece of work goes when the work is done, or begun again."""

import pytest

from requant.errors import DiskFullError, TransientError, is_disk_full
from requant.execution.key import stage_key
from requant.execution.perform import perform
from requant.execution.stage import Metrics, Stage, StageContext
from requant.store import Store
from requant.store.room import naming_full_disk
from tests.support.chain import Silent
from tests.support.verb_stage import Verb


def execute(section: Verb, context: StageContext) -> Metrics:
    (context.out / "word.txt").write_text(section.verb)
    return {}


STAGE = Stage("evaluate", 1, "evaluation", (), execute)
SECTION = Verb(verb="talk")
KEY = stage_key(STAGE, SECTION, {}, seed=0)


def done(store: Store) -> str:
    found = perform(store, STAGE, KEY, SECTION, {}, seed=0, device="cpu", reporter=Silent())
    return found.digest


def left(store: Store) -> list[str]:
    folders = (store.tmp, store.work_path("x").parent, store.attempt_path("x").parent)
    return [path.name for folder in folders for path in folder.glob("*")]


@pytest.mark.parametrize("recorded", [False, True])
def test_drafts_scratch_and_attempt_of_a_killed_process_go(store: Store, recorded: bool) -> None:
    if recorded:
        done(store)
    for folder in (store.draft_path(KEY.digest), store.work_path(KEY.digest)):
        folder.mkdir(parents=True)
    store.attempt_path(KEY.digest).parent.mkdir(exist_ok=True)
    store.attempt_path(KEY.digest).write_text("{}")
    done(store)
    assert left(store) == []


def test_drafts_of_other_work_stay(store: Store) -> None:
    other = store.draft_path("f" * 64)
    other.mkdir(parents=True)
    done(store)
    assert left(store) == [other.name]


def test_words_of_libraries_for_a_full_disk_are_known() -> None:
    assert is_disk_full(TransientError("(sqlite3.OperationalError) database or disk is full"))
    assert is_disk_full(OSError("Not enough disk space. Needed: Unknown size"))
    assert not is_disk_full(OSError("disk I/O error"))


def test_a_full_disk_is_said_once_without_a_statements_parameters(store: Store) -> None:
    store.root.mkdir()
    outcome = "what served goes on serving"
    with (
        pytest.raises(DiskFullError) as caught,
        naming_full_disk("outer", store.root, "nothing was published"),
        naming_full_disk("promote", store.root, outcome),
    ):
        raise RuntimeError("database or disk is full\n[SQL: INSERT ...]")
    said = str(caught.value)
    assert said.startswith(f"promote: the disk of {store.root} is full (")
    assert said.endswith(f"{outcome}. Free space (`requant gc --keep N`) and run again")
    assert "SQL" not in said
