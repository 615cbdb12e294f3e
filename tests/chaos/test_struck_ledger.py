"""A night of the ledger that is killed anywhere loses no row, and trains none twice."""

import random
from pathlib import Path

import pytest

from tests.chaos import ledger
from tests.chaos.ledger_checks import check
from tests.chaos.ledger_line import base_in, ready


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_in(tmp_path_factory.mktemp("base"))


def test_nights_killed_at_random_lose_no_row_and_train_none_twice(
    base: Path, tmp_path: Path
) -> None:
    played = ready(tmp_path / "line", base, seed=1)
    strikes = list(ledger.struck_nights(played, 20, random.Random(1).random))
    ledger.to_the_end(played)
    check(played)
    assert len(strikes) == 20
    assert len(played.ledger().nights) >= 6
    verdicts = {outcome.verdict for outcome in played.line().nights.values()}
    assert {"accepted", "released"} <= verdicts


def test_a_night_killed_before_each_durable_write_loses_no_row(base: Path, tmp_path: Path) -> None:
    played = ready(tmp_path / "line", base, seed=2)
    strikes = list(ledger.struck_before_each_write(played))
    check(played)
    struck = [strike.before.split("/")[1] for strike in strikes]
    # Begun, rows taken, ledger taken, ended; three artifacts, and what is known of each.
    assert struck.count("lines") == 4
    assert struck.count("tmp") == 6
    assert struck.count("actions") == 3
