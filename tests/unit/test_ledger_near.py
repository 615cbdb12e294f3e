"""Near-duplicates planted in real text are found, and what is not one is not."""

import random

import numpy as np
import pytest

from requant.corpus import topics
from requant.data.formats import Row
from requant.data.rows import conversation
from requant.errors import ConfigError
from requant.ledger.near import PERMUTATIONS, algorithm, bands, similarity
from tests.support.ledgers import asked, batch_at, empty, text


def passages(count: int) -> list[Row]:
    """Passages of 80 words of the language reference."""
    words = [word for _, topic in topics() for word in topic.split()]
    return [
        conversation(f"What does passage {at} say?", " ".join(words[80 * at : 80 * (at + 1)]))
        for at in range(count)
    ]


def edited(row: Row, word: str, at: int) -> Row:
    question, answer = (message["content"] for message in row["messages"])
    words = answer.split()
    words[at % len(words)] = word
    return conversation(question, " ".join(words))


def test_a_changed_word_in_eighty_is_found_and_unrelated_text_is_not(tmp_path) -> None:
    rows = passages(300)
    copies = [edited(row, "changed", 7 * at) for at, row in enumerate(rows)]
    said = asked(empty(tmp_path), [*rows, *copies])
    found = said.nearest.row[len(rows) :]
    assert (found >= 0).mean() >= 0.99
    assert all(at == row for at, row in enumerate(found) if row >= 0)
    # The reference repeats itself: what two passages share is theirs, not chance.
    alone = said.nearest.row[: len(rows)]
    for row in np.flatnonzero(alone >= 0):
        both = [triples(rows[row]), triples(rows[alone[row]])]
        assert len(both[0] & both[1]) / len(both[0] | both[1]) > 0.7
    assert (alone >= 0).mean() < 0.05


def triples(row: Row) -> set[tuple[str, ...]]:
    words = "".join(
        letter if letter.isalnum() or letter == "_" else " "
        for message in row["messages"]
        for letter in f"{message['content']} "
    )
    split = words.casefold().split()
    return {tuple(split[at : at + 3]) for at in range(len(split) - 2)}


def test_the_estimate_is_the_share_of_runs_in_common() -> None:
    draw, words = random.Random(1), [f"w{number}" for number in range(10_000)]
    errors = []
    for _ in range(60):
        left = draw.sample(words, 80)
        right = list(left)
        for at in draw.sample(range(80), draw.randrange(12)):
            right[at] = draw.choice(words)
        both = [{tuple(each[at : at + 3]) for at in range(78)} for each in (left, right)]
        batch = batch_at([text(" ".join(left)), text(" ".join(right))], ["", ""], 0)
        estimate = similarity(batch.signatures[:1], batch.signatures[1:])[0]
        errors.append(estimate - len(both[0] & both[1]) / len(both[0] | both[1]))
    assert abs(np.mean(errors)) < 0.015
    assert np.std(errors) < 0.04


@pytest.mark.parametrize(
    ("left", "right", "near"),
    [
        (conversation("Is 7 prime?", "Yes."), conversation("Is 8 even?", "Yes."), False),
        (conversation("Is 7 prime?", "Yes."), conversation("is 7 prime", "yes"), True),
        (text("Yes."), text("yes!"), True),
        (text("Yes."), text("No."), False),
        (text("hello world"), text("world hello"), False),
        (text("=>"), text("!?"), False),
        (text("12 + 30"), text("12 + 31"), False),
    ],
)
def test_short_rows_are_near_duplicates_only_if_their_words_are_equal(
    tmp_path, left: Row, right: Row, near: bool
) -> None:
    said = asked(empty(tmp_path), [left, right])
    assert said.nearest.row.tolist() == [-1, 0 if near else -1]
    assert said.nearest.similarity[1] == (1 if near else 0)
    assert not (said.known >= 0).any()


def test_a_system_prompt_makes_no_two_rows_alike(tmp_path) -> None:
    system = {"role": "system", "content": " ".join(f"rule{number}" for number in range(200))}
    rows = [
        {"messages": [system, *conversation(f"What is {word}?", f"{word} is a city")["messages"]]}
        for word in ("Rome", "Oslo")
    ]
    assert (asked(empty(tmp_path), rows).nearest.row == -1).all()


def test_rows_that_call_tools_otherwise_are_no_near_duplicates(tmp_path) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "What is the weather?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"name": "weather", "arguments": {"city": city}}],
                },
            ]
        }
        for city in ("Rome", "Oslo")
    ]
    assert (asked(empty(tmp_path), rows).nearest.row == -1).all()


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_bands_bring_nineteen_in_twenty_pairs_of_the_threshold_together(threshold: float) -> None:
    count, size = bands(threshold)
    assert count * size <= PERMUTATIONS
    assert 1 - (1 - threshold**size) ** count >= 0.95 > 1 - (1 - threshold**size) ** (count - 1)


@pytest.mark.parametrize("threshold", [0.49, 1.0])
def test_a_threshold_that_cannot_be_told_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match=f"near-duplicates is {threshold}; expected 0.5 to 0.99"):
        bands(threshold)


def test_what_decides_the_keys_is_named() -> None:
    assert algorithm(0.8) != algorithm(0.9)
    assert algorithm(0.8)["minhash"] == "rensa RMinHash 2"
