"""The head of a model line: a night begins once, ends once, and what it took is never lost."""

import json
from pathlib import Path

import pytest

from requant.errors import ArtifactError, ConfigError
from requant.ledger.document import EMPTY, Ledger, ReadIn, read_ledger, write_ledger
from requant.ledger.fates import Count
from requant.ledger.nights import begin, decide_set_aside, end, now_serves, took
from requant.store import Store, publish
from requant.store.gc import find_garbage
from requant.store.lines import Line, Outcome, Verdict, change_line, needed_by_lines, read_line
from requant.store.locks import locked
from requant.store.pins import pin

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


def test_the_models_of_the_last_accepted_nights_are_kept_however_many_were_refused_since(
    store: Store,
) -> None:
    verdicts: list[Verdict] = ["accepted", "accepted", "refused", "pending"]
    nights = {
        number: Outcome(verdict=verdict, model=str(number) * 64)
        for number, verdict in enumerate(verdicts, 1)
    }
    change_line(store, "line", lambda line: Line(nights=nights))
    assert needed_by_lines(store) == (set(), [])
    assert needed_by_lines(store, 1) == ({"2" * 64}, [])
    assert needed_by_lines(store, 5) == ({"1" * 64, "2" * 64}, [])


def test_a_person_decides_on_rows_that_were_set_aside(store: Store) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store))
    end(store, "line", Outcome(verdict="refused", model=MODEL, reason="lost old text"))
    assert now_serves(store, "line", "c" * 64, "") == ""
    with pytest.raises(ConfigError, match="night 2: is no night of this line that ended; rows are"):
        decide_set_aside(store, "line", 2, "released", "")
    assert decide_set_aside(store, "line", 1, "released", "") == 3
    with pytest.raises(ConfigError, match=r"night 1: is released; rows are set aside of nights: n"):
        decide_set_aside(store, "line", 1, "discarded", "")
    # What was released may be another night's by now.
    assert "night 1, which made this model, are released" in now_serves(store, "line", MODEL, "")


def a_night(store: Store, model: str, verdict: Verdict) -> None:
    """End a night that began when the model that serves now did."""
    line = begin(store, "line")
    digests = [line.ledger] if line.ledger else []
    before = read_ledger(store.object_path(line.ledger)) if line.ledger else EMPTY
    took(store, "line", ledger=make_ledger(store, before, *digests), model=model)
    if verdict == "accepted":
        pin(store, "line", "champion", model)
    end(store, "line", Outcome(verdict=verdict, model=model))


def verdicts(store: Store) -> list[str]:
    return [outcome.verdict for outcome in read_line(store, "line").nights.values()]


def test_who_serves_decides_which_nights_are_accepted(store: Store) -> None:
    for model in "abc":
        a_night(store, model * 64, "accepted")
    a_night(store, "d" * 64, "pending")
    assert [each.parent for each in read_line(store, "line").nights.values()] == [
        None,
        *(model * 64 for model in "abc"),
    ]
    # Rolled back to the first: its children are no generations any more.
    now_serves(store, "line", "a" * 64, "rolled back")
    assert verdicts(store) == ["accepted", "refused", "refused", "pending"]
    now_serves(store, "line", "d" * 64, "")
    assert verdicts(store) == ["accepted", "refused", "refused", "accepted"]


def test_a_night_that_goes_on_after_a_rollback_builds_on_what_serves_now(store: Store) -> None:
    for model in "ab":
        a_night(store, model * 64, "accepted")
    begun = begin(store, "line").begun
    assert begun is not None
    assert begun.parent == "b" * 64
    took(store, "line", rows="e" * 64)
    pin(store, "line", "champion", "a" * 64)
    again = begin(store, "line")
    assert again.begun is not None
    assert (again.begun.parent, again.begun.rows) == ("a" * 64, "e" * 64)
    # What the command that was killed did not settle, the next night does.
    assert verdicts(store) == ["accepted", "refused"]


def test_rows_of_a_model_that_serves_are_not_released(store: Store) -> None:
    begin(store, "line")
    took(store, "line", ledger=make_ledger(store), model=MODEL)
    pin(store, "line", "champion", MODEL)
    with pytest.raises(
        ConfigError, match=r"night 1: its model aaaa\w+ serves already, and it only"
    ):
        decide_set_aside(store, "line", 1, "released", "")


def test_nights_stay_in_their_order(store: Store) -> None:
    for number in range(12):
        a_night(store, f"{number:x}" * 64, "accepted")
    assert list(read_line(store, "line").nights) == list(range(1, 13))


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
