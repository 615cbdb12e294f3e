"""Prefect's cache is keyed, verified and locked; retries happen where they can help."""

import base64
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import task_engine
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from requant.errors import TerminalError, TransientError
from requant.store import Store, all_records
from requant.store.health import examine
from tasks.caching import FlockManager
from tests.support.pickles import Bomb, armed
from tests.support.word_stage import say, take, tries

pytestmark = pytest.mark.usefixtures("mlflow_database")


def test_the_second_run_is_cached_and_does_nothing(tmp_path: Path) -> None:
    assert say(str(tmp_path), "hello") == "Completed"
    assert say(str(tmp_path), "hello") == "Cached"
    assert tries(tmp_path, "hello") == 1


def test_a_stage_passes_few_files(tmp_path: Path) -> None:
    take(str(tmp_path), "stack")
    (record,) = all_records(Store(tmp_path))
    passed = (Store(tmp_path).object_path(record.digest) / "word.txt").read_text().split()
    # The other two: the stage's own file, and the room that does its work.
    assert passed == [
        "tasks/nightly/night.py",
        "tasks/stage_task.py",
        "src/requant/execution/perform.py",
    ]


@pytest.mark.parametrize("harm", ["flip", "delete", "forget"])
def test_what_cannot_be_verified_is_a_miss(tmp_path: Path, harm: str) -> None:
    say(str(tmp_path), "hello")
    (record,) = all_records(Store(tmp_path))
    word = Store(tmp_path).object_path(record.digest) / "word.txt"
    if harm == "flip":
        word.write_text("hellO")
    elif harm == "delete":
        word.unlink()
    else:
        Store(tmp_path).record_path(record.key).unlink()
    assert say(str(tmp_path), "hello") == "Completed"
    assert tries(tmp_path, "hello") == 2
    assert word.read_text() == "hello"
    assert say(str(tmp_path), "hello") == "Cached"


def test_a_lost_prefect_result_costs_no_work(tmp_path: Path) -> None:
    say(str(tmp_path), "hello")
    for path in Store(tmp_path).results_path().iterdir():
        path.unlink()
    assert say(str(tmp_path), "hello") == "Completed"
    assert tries(tmp_path, "hello") == 1


def pickled(document: dict[str, Any], store: Store) -> None:
    blob = base64.encodebytes(pickle.dumps(Bomb())).decode()
    document["metadata"]["serializer"] = {"type": "pickle"}
    document["result"] = blob


def made_of_another_class(document: dict[str, Any], store: Store) -> None:
    document["metadata"]["serializer"] = {"type": "json"}
    module = {"__class__": "tests.support.shout.Shout", "data": {}}
    document["result"] = json.dumps(module)


def with_a_decoder_of_its_own(document: dict[str, Any], store: Store) -> None:
    document["metadata"]["serializer"] = {"type": "json", "object_decoder": "os.remove"}


def of_an_artifact_elsewhere(document: dict[str, Any], store: Store) -> None:
    told = json.loads(document["result"])
    told["artifact"]["uri"] = f"file:///elsewhere/objects/ab/{'ab' * 32}"
    document["result"] = json.dumps(told)


def of_another_artifact(document: dict[str, Any], store: Store) -> None:
    told = json.loads(document["result"])
    told["artifact"]["digest"] = "ab" * 32
    document["result"] = json.dumps(told)


def compressed(document: dict[str, Any], store: Store) -> None:
    document["metadata"]["serializer"] = {"type": "compressed/pickle"}


@pytest.mark.parametrize(
    "poison",
    [
        pickled,
        made_of_another_class,
        with_a_decoder_of_its_own,
        of_an_artifact_elsewhere,
        of_another_artifact,
        compressed,
    ],
)
def test_a_result_says_nothing_the_store_does_not_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    poison: Callable[[dict[str, Any], Store], None],
) -> None:
    """It is read in one way only, and must say what the record says; `verify` names it."""
    mark = armed(tmp_path, monkeypatch)
    say(str(tmp_path), "hello")
    store = Store(tmp_path)
    (path,) = store.results_path().iterdir()
    document = json.loads(path.read_text())
    poison(document, store)
    path.write_text(json.dumps(document))
    (problem,) = examine(store, deep=False).problems
    assert problem.startswith(f"{path}: ")
    assert say(str(tmp_path), "hello") == "Completed"
    assert not mark.exists()
    assert tries(tmp_path, "hello") == 1
    assert examine(store, deep=False).problems == ()
    assert say(str(tmp_path), "hello") == "Cached"


def test_what_stands_in_the_place_of_a_result_is_not_written_to(tmp_path: Path) -> None:
    """A link is replaced; a folder costs no work, fails nothing, and is named."""
    say(str(tmp_path), "hello")
    store = Store(tmp_path)
    (path,) = store.results_path().iterdir()
    for target in (tmp_path / "elsewhere", path.with_name("other")):
        target.write_text("untouched")
        path.unlink()
        path.symlink_to(target)
        assert say(str(tmp_path), "hello") == "Completed"
        assert target.read_text() == "untouched"
        assert not path.is_symlink()
        assert say(str(tmp_path), "hello") == "Cached"
        target.unlink()
    path.unlink()
    path.mkdir()
    (problem,) = examine(store, deep=False).problems
    assert problem == f"{path}: is not a stage's result; remove it: no night believes it"
    for _ in range(2):
        assert say(str(tmp_path), "hello") == "Completed"
    assert tries(tmp_path, "hello") == 1


def test_force_executes_a_cached_stage(tmp_path: Path) -> None:
    say(str(tmp_path), "hello")
    assert say(str(tmp_path), "hello", force=True) == "Completed"
    assert tries(tmp_path, "hello") == 2


@pytest.mark.parametrize("text", ["flaky-2", "oserror-2"])
def test_what_may_pass_is_tried_again_until_it_works(tmp_path: Path, text: str) -> None:
    assert say(str(tmp_path), text) == "Completed"
    assert tries(tmp_path, text) == 3


def test_what_does_not_pass_ends_with_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="the server is away"):
        say(str(tmp_path), "flaky-9")
    assert tries(tmp_path, "flaky-9") == 3


def test_what_can_never_work_is_tried_once(tmp_path: Path) -> None:
    with pytest.raises(TerminalError, match="this can never work"):
        say(str(tmp_path), "terminal")
    assert tries(tmp_path, "terminal") == 1


def test_a_server_that_is_away_when_a_stage_ends_fails_no_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, lost = task_engine._concurrency, []

    @contextmanager
    def losing_the_server_once(**words: Any) -> Iterator[None]:
        with slot(**words):
            yield
        if not lost:
            lost.append("the answer to the slot that was given back")
            raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(task_engine, "_concurrency", losing_the_server_once)
    assert say(str(tmp_path), "hello") == "Cached"
    assert len(lost) == 1
    assert tries(tmp_path, "hello") == 1


@contextmanager
def one_slot() -> Iterator[None]:
    """Let one task that fills the cores run at once."""
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit("processor", 1)
    try:
        yield
    finally:
        with get_client(sync_client=True) as client:
            client.delete_concurrency_limit_by_tag("processor")


class Racer:
    """The flow of one stage in a process of its own."""

    def __init__(self, state: Path, text: str, log: Path) -> None:
        environment = {
            **os.environ,
            **get_current_settings().to_environment_variables(exclude_unset=True),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-m", "tests.support.word_stage", str(state), text]
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=output, text=True
            )

    def said(self, words: str) -> list[str]:
        """List the lines of its log with these words."""
        assert self._process.poll() in (None, 0), self._log.read_text()
        return [line for line in self._log.read_text().splitlines() if words in line]

    def end(self) -> str:
        """Wait for its end; return the name of its final state."""
        return self._process.communicate(timeout=120)[0].strip()


def wait_until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_processes_that_race_on_one_key_work_once(tmp_path: Path) -> None:
    first = Racer(tmp_path, "held", tmp_path / "first.log")
    wait_until(lambda: tries(tmp_path, "held"))
    second = Racer(tmp_path, "held", tmp_path / "second.log")
    wait_until(lambda: second.said("waiting"))
    (tmp_path / "go").touch()
    assert [first.end(), second.end()] == ["Completed", "Cached"]
    assert tries(tmp_path, "held") == 1
    assert not first.said("waiting")
    said = second.said("waiting")[0]
    assert "waiting since 2 s for evaluate of '" in said
    assert f"which holds {tmp_path}/locks/task-" in said


def test_the_lock_manager_keeps_prefects_promises(tmp_path: Path) -> None:
    ours, theirs = FlockManager(Store(tmp_path)), FlockManager(Store(tmp_path))
    assert ours.acquire_lock("key", "me")
    assert ours.acquire_lock("key", "me")
    assert ours.is_lock_holder("key", "me")
    assert theirs.is_locked("key")
    assert not theirs.acquire_lock("key", "you", acquire_timeout=0.1)
    assert not theirs.wait_for_lock("key", timeout=0.1)
    with pytest.raises(ValueError, match="'key' is not held by 'you'"):
        ours.release_lock("key", "you")
    timer = threading.Timer(0.2, ours.release_lock, ("key", "me"))
    timer.start()
    assert theirs.acquire_lock("key", "you", acquire_timeout=10)
    timer.join()
    theirs.release_lock("key", "you")
    assert not ours.is_locked("key")


def test_a_stage_that_waits_for_a_slot_says_who_holds_it(tmp_path: Path) -> None:
    states = (tmp_path / "first", tmp_path / "second")
    with one_slot():
        first = Racer(states[0], "held", tmp_path / "first.log")
        wait_until(lambda: tries(states[0], "held"))
        second = Racer(states[1], "held", tmp_path / "second.log")
        wait_until(lambda: second.said("for a slot"))
        for state in states:
            state.mkdir(exist_ok=True)
            (state / "go").touch()
        assert [first.end(), second.end()] == ["Completed", "Completed"]
    said = second.said("for a slot")
    assert "s for a slot of the tag processor: all 1 are held, by evaluate-" in said[0]
    # Two lines in ten seconds: the pauses grow.
    assert 1 <= len(said) <= 3
