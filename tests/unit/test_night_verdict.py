"""Tonight's model against champion, anchor and base: what must be shown, and how far is looked."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from requant.config.evaluation import Evaluate
from requant.config.gate import Gate
from requant.evaluation.blocks import Ids, drawn, first_block, next_block
from requant.evaluation.looking import judged_scores
from requant.evaluation.night_verdict import fewest, guards, judge_night
from requant.evaluation.scores import TaskScores
from tests.support.scores import POOL, TASKS, TERMS, model_scores, task_scores

POOLS = dict.fromkeys(TASKS, POOL)


def verdict(gate: Gate | None = None, **models: Any) -> tuple[str, str]:
    decision = judge_night(models, gate or Gate(), POOLS)
    return decision.verdict, "\n".join(decision.reasons)


def test_the_champion_that_serves_is_the_measure_not_the_base() -> None:
    better = model_scores(1, new=0.02)
    assert verdict(requantized=better, base=model_scores(2))[0] == "promote"
    assert (
        verdict(requantized=better, champion=model_scores(2), base=model_scores(3))[0] == "promote"
    )
    # Better than the base, and worse than what serves.
    champion = model_scores(2, new=0.1)
    found, why = verdict(requantized=better, champion=champion, base=model_scores(3))
    assert found == "refuse"
    assert "heldout_perplexity against the champion" in why


def test_small_losses_cannot_add_up_against_the_anchor() -> None:
    tonight = model_scores(1, new=0.02, old=-0.09)
    champion = model_scores(2, old=-0.09)
    assert verdict(requantized=tonight, champion=champion)[0] == "promote"
    found, why = verdict(requantized=tonight, champion=champion, anchor=model_scores(3))
    assert found == "refuse"
    assert "old_perplexity against the anchor" in why


def test_a_first_night_may_lose_to_its_base_what_rounding_costs() -> None:
    rounded = model_scores(1, new=0.05, old=-0.03)
    assert verdict(requantized=rounded, base=model_scores(2))[0] == "promote"
    assert verdict(Gate(first_margins=1), requantized=rounded, base=model_scores(2))[0] == "refuse"


def test_noise_is_no_way_through() -> None:
    few = range(100)
    found, why = verdict(
        requantized=model_scores(1, 0.02, ids=few), champion=model_scores(2, ids=few)
    )
    assert found == "not enough evidence"
    assert "would decide" in why


def test_what_gains_nothing_serves_only_where_nothing_need_be_gained() -> None:
    same: Any = {"requantized": model_scores(1), "champion": model_scores(2)}
    assert verdict(**same)[0] == "not enough evidence"
    assert verdict(Gate(target=()), **same)[0] == "promote"


def test_what_is_missing_or_was_asked_otherwise_is_no_evidence() -> None:
    better = model_scores(1, new=0.02)
    assert verdict(requantized=better) == (
        "not enough evidence",
        "nothing was evaluated to hold it against\nthere is no guard to judge by\n"
        "there is no target to judge by",
    )
    without = {"heldout_perplexity": model_scores(2)["heldout_perplexity"]}
    found, why = verdict(requantized=better, champion=without)
    assert found == "not enough evidence"
    assert "old_perplexity was not evaluated of both champion and tonight's model" in why
    other = {
        task: replace(each, terms=replace(TERMS, template="x"))
        for task, each in model_scores(2).items()
    }
    found, why = verdict(requantized=better, champion=other)
    assert found == "not enough evidence"
    assert "template was 'x' for one and None for the other" in why


def test_a_floor_is_a_floor() -> None:
    models: Any = {"requantized": model_scores(1, new=0.02), "champion": model_scores(2)}
    assert verdict(Gate(floors={"old_perplexity": -2.0}), **models)[0] == "promote"
    found, why = verdict(Gate(floors={"old_perplexity": -1.0}), **models)
    assert (found, "below its floor of -1" in why) == ("refuse", True)
    found, why = verdict(Gate(floors={"arc_easy": 0.3}), **models)
    assert (found, why) == (
        "not enough evidence",
        "arc_easy has a floor and was not evaluated",
    )


def test_earlier_nights_guard_by_themselves_once_they_can_show_something() -> None:
    few = {"old_perplexity": 300, "past_heldout_perplexity": fewest(Gate()) - 1}
    assert guards(Gate(), few) == ("old_perplexity",)
    enough = {**few, "past_heldout_perplexity": fewest(Gate())}
    assert guards(Gate(), enough) == ("old_perplexity", "past_heldout_perplexity")
    assert guards(Gate(guard=("past_heldout_perplexity",)), few) == ("past_heldout_perplexity",)


def test_blocks_are_all_documents_in_an_order_that_nobody_chose() -> None:
    alone = {"task": [[place] for place in range(100)]}
    order = drawn(alone, seed=3, limit=None)
    assert order["task"] != sorted(order["task"])
    first = first_block(order, 10)["task"]
    second = next_block(order, {"task": 10}, 40)["task"]
    third = next_block(order, {"task": 40}, 500)["task"]
    assert (len(first), len(second), len(third)) == (10, 30, 60)
    assert sorted(first + second + third) == list(range(100))
    assert first == sorted(first)
    assert next_block(order, {"task": 100}, 500) == {}
    assert len(drawn(alone, seed=3, limit=7)["task"]) == 7


def test_no_look_takes_a_part_of_a_group() -> None:
    groups = [list(range(start, start + 1 + start % 7)) for start in range(0, 210, 7)]
    groups = [[*group, group[-1] + 1] for group in groups] + [list(range(300, 350))]
    order = drawn({"task": groups}, seed=5, limit=None)
    assert sorted(order["task"]) == groups
    seen = first_block(order, 8)["task"]
    blocks = [seen]
    while block := next_block(order, {"task": len(seen)}, 2 * len(seen)).get("task"):
        blocks.append(block)
        seen = seen + block
    assert len(blocks) > 2
    assert sorted(seen) == sorted(place for group in groups for place in group)
    for block in blocks:
        assert all(set(group) <= set(block) or not set(group) & set(block) for group in groups)

    large = {"task": [list(range(20)), [20], [21]]}
    assert first_block(large, 8)["task"] == list(range(20))
    # Beyond what was to be seen, there is still a next one.
    assert next_block(large, {"task": 20}, 16)["task"] == [20]
    assert sum(map(len, drawn(large, seed=0, limit=6)["task"])) == 6


@pytest.mark.parametrize(
    ("new", "verdicts"),
    [
        # Nothing can be shown on fewer than 218.
        (0.03, ["not enough evidence"] * 2 + ["promote"]),
        (-0.2, ["refuse"]),
        (0.0, ["not enough evidence"] * 4),
    ],
)
def test_the_gate_looks_at_more_until_it_decides_or_all_is_seen(
    new: float, verdicts: list[str]
) -> None:
    means = {"requantized": (1, new), "champion": (2, 0.0), "merged": (3, 0.0)}
    order = drawn({task: [[n] for n in range(POOL)] for task in TASKS}, 0, None)
    asked: list[tuple[str, int]] = []
    said: list[str] = []

    def evaluated(name: str, documents: Ids) -> Mapping[str, TaskScores]:
        seed, mean = means[name]
        return {
            task: task_scores(task, seed, mean * (task == "heldout_perplexity"), ids)
            for task, ids in documents.items()
        }

    def more(name: str, documents: Ids) -> Mapping[str, TaskScores]:
        asked.append((name, max(map(len, documents.values()))))
        return evaluated(name, documents)

    first = {name: evaluated(name, first_block(order, 64)) for name in means}
    found = judged_scores(first, Evaluate(first_documents=64), order, more, said.append)
    assert [line.rpartition(": ")[2] for line in said] == verdicts
    assert asked == [
        (name, 64 << turn)
        for turn in range(len(verdicts) - 1)
        for name in ("requantized", "champion")
    ]
    assert found["merged"] == first["merged"]
    counts = {len(each.documents) for each in found["champion"].values()}
    assert max(counts) == 64 << (len(verdicts) - 1)
    assert all(
        [each.id for each in found["champion"][task].documents]
        == [each.id for each in found["requantized"][task].documents]
        for task in TASKS
    )
