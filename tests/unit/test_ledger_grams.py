"""What may not be trained on, because models are measured on it."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from requant.data.formats import Row
from requant.data.overlap import ngrams
from requant.data.rows import conversation
from requant.ledger.grams import COMMON, GRAM, measured_grams, measured_texts
from tests.support.ledgers import asked, batch_at, empty, taken, text

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"
WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=40).map(" ".join)


def every_run(found: str) -> set[tuple[str, ...]]:
    return ngrams(found, GRAM) | {tuple(found.split())}


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(WORDS, max_size=8))
def test_shared_runs_are_those_of_sets_of_tuples(trained: list[str], held: list[str]) -> None:
    batch = batch_at([text(each) for each in trained], trained, 0)
    measured = measured_texts(held)
    for row, each in enumerate(trained):
        mine = batch.grams.values[batch.grams.starts[row] : batch.grams.starts[row + 1]]
        words = each.split()
        assert len(mine) == max(len(words) - GRAM + 1, 0) + 1
        found = set(mine.tolist()) & set(measured.tolist())
        assert len(found) == len(
            every_run(each) & {run for text in held for run in every_run(text)}
        )


@given(st.lists(WORDS, max_size=12))
@settings(max_examples=30, deadline=None)
def test_a_run_is_counted_once_for_each_text_that_holds_it(held: list[str]) -> None:
    counts = Counter(run for each in set(held) for run in every_run(each))
    found = Counter(measured_texts(held).tolist())
    assert sorted(found.values()) == sorted(counts.values())


@pytest.mark.parametrize(
    ("row", "contaminated"),
    [
        (conversation("Count.", LONG), True),
        (conversation("Go on.", f"zero {LONG.upper()}, fourteen!"), True),
        (conversation(f"Translate: {LONG}", "eins, zwei, drei"), True),
        (text(f"He said: {LONG}."), True),
        (conversation("Count.", LONG.replace("seven", "7")), False),
        (conversation("Count to three, as quickly as you can.", "one two three"), False),
        (
            {
                "messages": [
                    {"role": "system", "content": LONG},
                    *conversation("a", "b")["messages"],
                ]
            },
            False,
        ),
    ],
)
def test_thirteen_words_of_a_held_out_answer_contaminate(
    tmp_path, row: Row, contaminated: bool
) -> None:
    ledger, _ = taken(empty(tmp_path), [conversation("Count to thirteen, please.", LONG)], (), [0])
    said = asked(ledger, [row])
    assert bool(said.contaminated[0]) == contaminated == bool(said.shared[0])


def test_the_question_of_a_held_out_row_contaminates_nothing(tmp_path) -> None:
    ledger, _ = taken(empty(tmp_path), [conversation(LONG, "Correct, and a good answer.")], (), [0])
    assert not asked(ledger, [conversation(LONG, "Nonsense from beginning to end.")]).contaminated[
        0
    ]


def test_a_short_held_out_row_contaminates_its_equal_alone(tmp_path) -> None:
    ledger, _ = taken(empty(tmp_path), [conversation("Is 7 prime?", "Yes.")], (), [0])
    same, other = conversation("is 7 prime", "yes"), conversation("Is 9 odd?", "Yes.")
    assert asked(ledger, [same, other]).contaminated.tolist() == [True, False]


def test_a_held_out_row_is_not_contaminated_by_others(tmp_path) -> None:
    ledger, _ = taken(empty(tmp_path), [conversation("Count to thirteen.", LONG)], (), [0])
    said = asked(ledger, [conversation("What comes after twelve?", f"{LONG} fourteen")], (), [0])
    assert said.shared[0] > 0
    assert said.keep[0]


def test_a_row_is_held_against_text_that_is_measured_from_tonight_on(tmp_path) -> None:
    rows = [conversation("Count.", f"{LONG} end"), conversation("And now?", f"so: {LONG}")]
    assert asked(empty(tmp_path), rows, heldout=[1]).contaminated.tolist() == [True, False]
    of_task = measured_texts([f"Q: {LONG}", "Yes"])
    assert asked(empty(tmp_path), rows, measured=of_task).contaminated.all()
    assert not asked(empty(tmp_path), [text("Yes, sir")], measured=of_task).contaminated[0]


@pytest.mark.parametrize("texts", [COMMON, COMMON + 1])
def test_what_many_measured_texts_say_is_a_phrase(tmp_path, texts: int) -> None:
    held = [conversation(f"Say {number}", f"{LONG} {number} times") for number in range(texts)]
    row = conversation("Whatever you like", f"Well: {LONG}")
    said = asked(empty(tmp_path), [row], measured=measured_grams(held))
    assert bool(said.contaminated[0]) == (texts <= COMMON)
    half = texts // 2
    ledger, _ = taken(empty(tmp_path), held[:half], (), range(half))
    ledger, later = taken(ledger, held[half:], (), range(texts - half))
    assert later.nearest.row.max() == -1
    assert bool(asked(ledger, [row]).contaminated[0]) == (texts <= COMMON)
