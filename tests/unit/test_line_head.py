"""The head of a model line: a night begins once, ends once, and what it took is never lost."""

import json
from pathlib import Path

import pytest

from requant.errors import ArtifactError, ConfigError
from requant.ledger.document import EMPTY, Ledger, ReadIn, write_ledger
from requant.ledger.fates import Count
from requant.ledger.nights import begin, decide_set_aside, end, settle, took
from requant.store import Store, publish
from requant.store.gc import find_garbage
from requant.store.lines import Outcome, read_line
from requant.store.locks import locked

MODEL = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state")


def make_ledger(store: Store, before: Ledger = EMPTY, digest: str = "", rows: int = 3) -> str:
    """Publish the ledger of a night that took all its rows."""
    night = before.night + 1
    draft = store.draft_path("x")
    draft.mkdir(parents=True)
    ledger = Ledger(
        nights=(*before.nights, ReadIn(first=before.rows, rows=rows, artifact="b" * 64)),
        ledgers=(*before.ledgers, *([digest] if digest else [])),
        counts=(
            *before.counts,
            *(
                [Count(read=night, source="s", decided="taken", night=night, rows=rows)]
                * bool(rows)
            ),
        ),
        queue=(),
        released=(),
    )
    write_ledger(draft, ledger, [])
    return publish(store, "dataset", draft).digest


def test_a_killed_night_goes_on_with_what_it_took(store: Store) -> None:
    began = begin(store, "line").begun
    took(store, "line", rows="b" * 64)
    digest = make_ledger(store)
    took(store, "line", ledger=digest)
    again = begin(store, "line").begun
    assert began is not None
    assert again is not None
    assert (again.at, again.rows, again.ledger) == (began.at, "b" * 64, digest)
    assert read_line(store, "line").ledger is None
    # Killed after the promotion: the night that goes on ends it, once.
    for _ in range(2):
        end(store, "line", Outcome(verdict="accepted", model=MODEL))
    line = read_line(store, "line")
    assert (line.ledger, line.begun) == (digest, None)
    assert line.nights == {1: Outcome(verdict="accepted", model=MODEL, began=again.at)}


def test_a_night_that_took_nothing_moves_the_head_only_where_it_read_something(
    store: Store,
) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store, rows=0))
    end(store, "line", None)
    assert read_line(store, "line").ledger is None
    begin(store, "line")
    digest = make_ledger(store)
    took(store, "line", ledger=digest)
    end(store, "line", None)
    assert read_line(store, "line").ledger == digest
    assert not read_line(store, "line").nights


def test_no_collection_takes_what_a_line_names(store: Store) -> None:
    begin(store, "line")
    digest = make_ledger(store)
    assert store.object_path(digest) in find_garbage(store, 1).folders
    took(store, "line", ledger=digest)
    assert store.object_path(digest) not in find_garbage(store, 1).folders


def test_a_person_decides_on_rows_that_were_set_aside(store: Store) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store))
    end(store, "line", Outcome(verdict="refused", model=MODEL, reason="lost old text"))
    assert settle(store, "line", "c" * 64, "accepted", "") is None
    with pytest.raises(ConfigError, match="night 2: is no night of this line that ended; rows are"):
        decide_set_aside(store, "line", 2, "released", "")
    assert decide_set_aside(store, "line", 1, "released", "") == 3
    with pytest.raises(ConfigError, match=r"night 1: is released; rows are set aside of nights: n"):
        decide_set_aside(store, "line", 1, "discarded", "")
    # What was released is no longer this night's.
    assert settle(store, "line", MODEL, "accepted", "") is None


def test_a_person_accepts_what_the_gate_refused_and_takes_it_back(store: Store) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store))
    end(store, "line", Outcome(verdict="pending", model=MODEL))
    assert settle(store, "line", MODEL, "accepted", "it is right") == 1
    assert read_line(store, "line").nights[1].reason == "it is right"
    assert settle(store, "line", MODEL, "refused", "rolled back") == 1


def test_a_night_that_never_ended_can_be_discarded_but_not_one_in_progress(store: Store) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store))
    with (
        locked(store.night_lock("line"), what="the night"),
        pytest.raises(ConfigError, match="night 1: a night of line is in progress: the night"),
    ):
        decide_set_aside(store, "line", 1, "discarded", "")
    assert decide_set_aside(store, "line", 1, "discarded", "crashes every time") == 3
    line = read_line(store, "line")
    assert line.begun is None
    assert line.nights[1].verdict == "discarded"


def test_a_head_that_was_altered_is_not_believed(store: Store) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store))
    path = store.line_path("line")
    content = json.loads(path.read_bytes())
    content["content"]["ledger"] = "d" * 64
    path.chmod(0o600)
    path.write_text(json.dumps(content))
    with pytest.raises(
        ArtifactError, match=r"was altered, .* takes every row of its sources for n"
    ):
        read_line(store, "line")
    assert any("line.json" in reason for reason in find_garbage(store, 1).held_back)


def test_fates_that_do_not_add_up_are_refused(store: Store, tmp_path: Path) -> None:
    ledger = EMPTY.model_copy(update={"nights": (ReadIn(first=0, rows=2, artifact=MODEL),)})
    with pytest.raises(ArtifactError, match="ledger of night 1: 0 fates of 2 rows: one is lost"):
        write_ledger(tmp_path, ledger, [])
