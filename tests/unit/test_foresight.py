"""What a task says beforehand it can show is what the gate then shows."""

import random
from pathlib import Path

import pytest

from requant.config.gate import Gate
from requant.evaluation.foresight import foreseen, last_spreads
from requant.evaluation.judging import likelihood_rule
from requant.evaluation.night_verdict import margins_of
from requant.gate import Differences, decide, smallest_shown
from requant.store import Store, write_record
from tests.support.nights import make_night

GATE = Gate()
TARGET, GUARD = (likelihood_rule(role, margins_of(GATE, 1.0)) for role in ("target", "guard"))


def test_more_documents_and_less_spread_show_less() -> None:
    found = [smallest_shown(TARGET, units, 0.05, GATE.alpha) for units in (128, 256, 512)]
    assert found == sorted(found, reverse=True)
    assert smallest_shown(TARGET, 256, 0.02, GATE.alpha) < found[1]  # type: ignore[operator]
    assert smallest_shown(GUARD, 128, 0.02, GATE.alpha) is None
    least = smallest_shown(GUARD, 512, 0.02, GATE.alpha)
    assert least is not None
    assert -GATE.margin < least < 0


@pytest.mark.parametrize("units", [128, 512])
@pytest.mark.parametrize("spread", [0.02, 0.08])
def test_four_nights_of_five_show_it(units: int, spread: float) -> None:
    least = smallest_shown(TARGET, units, spread, GATE.alpha)
    assert least is not None
    draw = random.Random(0)
    nights = 300

    def shown(mean: float) -> float:
        passed = 0
        for _ in range(nights):
            values = [draw.gauss(mean, spread) for _ in range(units)]
            (found,) = decide(
                [(TARGET, Differences("t", "champion", "log_likelihood", values))], GATE.alpha
            ).findings
            passed += found.state == "shown"
        return passed / nights

    assert 0.7 < shown(least) < 0.9
    assert shown(0.7 * least) < 0.4


def test_it_is_said_of_each_task() -> None:
    lines = foreseen(GATE, {"heldout_perplexity": 317, "old_perplexity": 40}, {}, "the last night")
    assert lines == [
        "heldout_perplexity: 317 documents, spread 0.12 nats a byte (of SmolLM2-135M): a gain of "
        "0.036 is shown in four nights of five; only what gains 0.11 is shown to lose no 0.02",
        "old_perplexity: 40 documents, spread 0.02 nats a byte (of SmolLM2-135M): too few to "
        "guard by",
    ]
    spreads = {"old_perplexity": 0.001}
    grouped = ["old_perplexity"]
    (line,) = foreseen(GATE, {"old_perplexity": 400}, spreads, "the last night", grouped)
    assert line.startswith("old_perplexity: 400 groups of documents, spread")
    assert "spread 0.001 nats a byte (of the last night): a true loss of up to 0.0" in line


def test_an_evaluation_that_cannot_be_read_ends_no_night(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    said: list[str] = []
    assert last_spreads(store, "line", GATE, said.append) == {}
    record = make_night(store)["evaluate"]
    write_record(store, record.model_copy(update={"labels": {"pipeline": "line"}}))
    assert last_spreads(store, "line", GATE, said.append) == {}
    assert not said
    folder = store.object_path(record.digest)
    folder.chmod(0o700)
    (folder / "samples").mkdir()
    (folder / "samples" / "requantized.old_perplexity.parquet").write_bytes(b"half")
    assert last_spreads(store, "line", GATE, said.append) == {}
    assert len(said) == 1
    assert said[0].startswith(f"evaluation {record.digest[:12]} cannot be read (Arrow")
