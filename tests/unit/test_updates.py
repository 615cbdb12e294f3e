"""Updates built from updates keep what they do not change."""

from pathlib import Path

import pytest

from requant.merging.updates import Update, chained, interpolated, replaced


def start() -> object:
    return lambda weight, rows: weight


WHOLE = replaced(Path("adapter.safetensors"), "weight", (2, 3))
FIRST = Update((2, 3), WHOLE.open, by_rows=False, open_start=start, adapted=False)  # type: ignore[arg-type]


def test_a_part_of_the_way_starts_where_the_whole_does() -> None:
    half = interpolated(FIRST, 0.5)
    assert (half.open_start, half.adapted, half.by_rows) == (start, False, False)


@pytest.mark.parametrize("adapted", [True, False])
def test_one_upon_another_starts_where_the_first_does(adapted: bool) -> None:
    second = Update((4, 3), WHOLE.open, adapted=adapted)
    both = chained(FIRST, second)
    assert (both.open_start, both.adapted, both.by_rows) == (start, adapted, False)
    assert both.shape == (4, 3)
