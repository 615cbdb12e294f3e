"""A night's mix: the shares that were asked for, and said where they cannot be had."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from requant.config.data import Replay
from requant.data.mixing import mixed, unmeasured
from requant.data.overlap import Measured, even
from requant.data.rows import conversation

NEW = [{"text": f"new {number}"} for number in range(90)]
EARLIER = {
    1: [{"text": f"first {number}"} for number in range(200)],
    3: [{"text": f"third {number}"} for number in range(100)],
}
GENERAL = [{"text": f"old {number}"} for number in range(60)]
WRITTEN = [{"text": f"own {number}"} for number in range(150)]


def test_without_replay_the_night_is_its_new_rows_in_their_order() -> None:
    mix = mixed(NEW, EARLIER, GENERAL, Replay(), 0)
    assert mix.rows == tuple(NEW)
    assert mix.counts == {"new": 90}
    assert not mix.said


@given(st.floats(0, 0.4), st.floats(0, 0.2), st.floats(0, 0.3), st.integers(0, 9))
def test_shares_are_of_all_rows(rows: float, general: float, written: float, seed: int) -> None:
    replay = Replay(rows=rows, general=general, written=written)
    mix = mixed(NEW, EARLIER, GENERAL, replay, seed, written=WRITTEN)
    replayed = sum(count for name, count in mix.counts.items() if name.startswith("night"))
    total = len(mix.rows)
    assert sum(mix.counts.values()) == total
    assert len({row["text"] for row in mix.rows}) == total
    if not any("asks for" in line for line in mix.said):
        assert abs(replayed - rows * total) <= 1.5
        assert abs(mix.counts.get("general", 0) - general * total) <= 1.5
        assert abs(mix.counts.get("written", 0) - written * total) <= 1.5
    assert mix == mixed(NEW, EARLIER, GENERAL, replay, seed, written=WRITTEN)


def test_each_night_draws_anew_of_what_the_base_wrote() -> None:
    def drawn(night: int | str, seed: int = 0) -> set[str]:
        mix = mixed(NEW, {}, (), Replay(written=0.25), seed, written=WRITTEN, night=night)
        assert mix.counts == {"new": 90, "written": 30}
        return {row["text"] for row in mix.rows} & {row["text"] for row in WRITTEN}

    nights = [drawn(1), drawn(2), drawn("a digest"), drawn(1, seed=1)]
    assert len(set(map(frozenset, nights))) == 4
    assert drawn(2) == nights[1]


def test_what_is_measured_on_is_not_replayed_question_or_answer() -> None:
    asked, said = "Where do the swifts of the old mill sleep?", "Under the eaves, or on the wing."
    measured = Measured(map(even, [asked, said]))
    fine = conversation("Who sleeps?", "Nobody.")
    rows = [
        fine,
        conversation(asked.upper(), "In nests."),
        conversation("Where?", said),
        {"text": f" {asked}\n"},
    ]
    assert unmeasured(rows, measured) == [fine]


def test_nights_are_drawn_by_the_rows_they_have() -> None:
    counts = [mixed(NEW, EARLIER, (), Replay(rows=0.5), seed).counts for seed in range(200)]
    first = sum(each["night 1"] for each in counts) / sum(
        each["night 1"] + each["night 3"] for each in counts
    )
    assert abs(first - 2 / 3) < 0.02


def test_a_share_that_cannot_be_had_is_said() -> None:
    mix = mixed(NEW, {1: EARLIER[1][:5]}, GENERAL[:2], Replay(rows=0.3, general=0.2), 0)
    assert mix.said[:2] == (
        "prepare_data.replay.rows=0.3 asks for 54 rows, and there are 5",
        "prepare_data.replay.general=0.2 asks for 36 rows, and there are 2",
    )
    assert mix.said[2] == "trained on: 90 new, 5 night 1, 2 general"
    mix = mixed(NEW, {}, (), Replay(written=0.5), 0, written=WRITTEN[:7])
    assert mix.said == (
        "prepare_data.replay.written=0.5 asks for 90 rows, and there are 7",
        "trained on: 90 new, 7 written",
    )


def test_a_consolidating_night_takes_the_whole_reservoir() -> None:
    mix = mixed(NEW, EARLIER, (), Replay(rows=0.1), 0, whole=True)
    assert mix.counts == {"new": 90, "night 1": 200, "night 3": 100}


def test_shares_that_leave_no_new_row_are_refused() -> None:
    text = r"rows=0.6, general=0.2 and written=0.2 leave no place for new rows; their sum must be"
    with pytest.raises(ValidationError, match=text):
        Replay(rows=0.6, general=0.2, written=0.2)


def test_a_share_of_nothing_leaves_the_key_as_it_was() -> None:
    assert "written" not in Replay(rows=0.2).key_fields()
    assert Replay(rows=0.2, written=0.1).key_fields()["written"] == 0.1
