"""The gate lets a model serve, or says on which figures it must not."""

from typing import Any

import pytest

from requant.config.operations import Promote
from requant.errors import ConfigError, GateError
from requant.evaluation.gate import check_gate, idle_guards


def row(task: str, low: float | None, high: float | None, *, higher: bool = True) -> dict[str, Any]:
    return {
        "earlier": "base",
        "later": "requantized",
        "task": task,
        "metric": "acc" if higher else "loss",
        "higher_is_better": higher,
        "mean": ((low or 0) + (high or 0)) / 2,
        "low": low,
        "high": high,
        "n": 64,
    }


@pytest.mark.parametrize(
    ("low", "high", "higher", "refused"),
    [
        (-0.3, -0.1, True, True),
        (-0.3, 0.1, True, False),
        (0.1, 0.3, True, False),
        (0.1, 0.3, False, True),
        (-0.3, -0.1, False, False),
    ],
)
def test_only_what_is_surely_worse_is_refused(
    low: float | None, high: float | None, higher: bool, refused: bool
) -> None:
    paired = [row("old", low, high, higher=higher)]
    if refused:
        with pytest.raises(GateError, match=r"old is worse than the base's: .*over 64"):
            check_gate(Promote(guard=("old",)), paired, None)
    else:
        check_gate(Promote(guard=("old",)), paired, None)
    check_gate(Promote(), paired, None)


def test_steps_between_are_not_the_whole_chain() -> None:
    paired = [{**row("old", -0.3, -0.1), "later": "merged"}, row("old", -0.1, 0.1)]
    check_gate(Promote(guard=("old",)), paired, None)


def test_a_task_nobody_compared_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"promote.guard: 'new' was not compared.*compared: old"):
        check_gate(Promote(guard=("new",)), [row("old", 0, 0)], None)


def test_what_a_person_took_back_stays_back() -> None:
    with pytest.raises(GateError, match="was rolled back at 2026-11-21T10:00:00; it serves again"):
        check_gate(Promote(), [], "2026-11-21T10:00:00")


def test_too_few_documents_do_not_open_the_gate() -> None:
    with pytest.raises(GateError, match="old was compared on 64 documents, too few"):
        check_gate(Promote(guard=("old",)), [row("old", None, None)], None)


def test_a_guard_that_had_nothing_to_judge_by_is_said() -> None:
    guard = Promote(guard=("old", "past_heldout_perplexity"))
    (note,) = idle_guards(guard, [row("old", -0.1, 0.1)])
    assert note.startswith("promote.guard: past_heldout_perplexity guarded nothing: no earlier")
    both = [row("old", -0.1, 0.1), row("past_heldout_perplexity", -0.1, 0.1)]
    assert idle_guards(guard, both) == []
