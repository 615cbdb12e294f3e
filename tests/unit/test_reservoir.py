"""The reservoir: every row a line trained on is in it with the same chance, whatever its night."""

from collections import Counter

from requant.ledger.reservoir import Reservoir, brought_up, poured

NIGHTS = {1: range(0, 60), 2: range(100, 120), 3: range(200, 320)}
ACCEPTED = dict.fromkeys(NIGHTS, "accepted")


def up_to(outcomes: dict[int, str], seed: int, before: Reservoir | None = None) -> Reservoir:
    start = before or Reservoir()
    return brought_up(start, outcomes, NIGHTS.__getitem__, 20, seed)  # type: ignore[arg-type]


def test_every_row_has_the_same_chance() -> None:
    draws = 600
    found = Counter(number for seed in range(draws) for number, _ in up_to(ACCEPTED, seed).rows)
    rows = sum(map(len, NIGHTS.values()))
    assert sum(found.values()) == 20 * draws
    expected = 20 * draws / rows
    for numbers in NIGHTS.values():
        mean = sum(found[number] for number in numbers) / len(numbers)
        # Five standard errors of a mean of binomials.
        assert abs(mean - expected) < 5 * (expected / len(numbers)) ** 0.5


def test_night_after_night_is_the_same_as_all_at_once() -> None:
    one = up_to({1: "accepted"}, 3)
    two = up_to({1: "accepted", 2: "refused"}, 3, one)
    assert two == one
    three = up_to({1: "accepted", 2: "refused", 3: "accepted"}, 3, two)
    assert three.rows == poured(one, 3, list(NIGHTS[3]), 20, 3).rows
    assert set(three.nights) == {1, 3}


def test_the_rows_of_a_night_that_was_rolled_back_go() -> None:
    before = up_to(ACCEPTED, 5)
    after = up_to({1: "accepted", 2: "accepted", 3: "refused"}, 5, before)
    assert after.rows == up_to({1: "accepted", 2: "accepted"}, 5).rows
    assert after.seen == 80


def test_another_size_is_another_sample() -> None:
    small = brought_up(up_to(ACCEPTED, 5), ACCEPTED, NIGHTS.__getitem__, 7, 5)  # type: ignore[arg-type]
    assert len(small.rows) == 7
