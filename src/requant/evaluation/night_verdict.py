"""The gate's verdict on tonight's 4-bit model, from the scores of one evaluation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from requant.config.gate import Gate
from requant.config.task_names import GENERATED, NEW_SKILL, PAST_PERPLEXITY
from requant.errors import ConfigError, ContractError, ParityError
from requant.evaluation.artifact import read_pools
from requant.evaluation.judging import Margins, likelihood_rule, question, spared
from requant.evaluation.results import ModelScores
from requant.evaluation.samples import read_models
from requant.evaluation.scores import TaskScores
from requant.gate import Decision, Differences, Floor, Rule, decide, least_units
from requant.gate.rules import Role

CANDIDATE = "requantized"


def references(models: Mapping[str, object], gate: Gate) -> dict[str, float]:
    """Return what tonight's model is held against, and how many margins it may lose to it.

    Args:
        models: Roles of an evaluation.
        gate: The configured rules.
    """
    if "champion" in models:
        anchor = {"anchor": gate.anchor_margins} if "anchor" in models else {}
        return {"champion": 1.0, **anchor}
    return {"base": gate.first_margins} if "base" in models else {}


def guards(gate: Gate, pools: Mapping[str, int]) -> tuple[str, ...]:
    """Return the tasks that guard: those configured, or all that are generated.

    Of those nobody named, earlier nights' rows guard once there are enough to show anything: their
    number grows night by night, and until then they could only refuse.

    Args:
        gate: The configured rules.
        pools: Task -> units there are of it.
    """
    if gate.guard is not None:
        return gate.guard
    return tuple(
        task
        for task in GENERATED
        if task in pools and (task != PAST_PERPLEXITY or pools[task] >= fewest(gate))
    )


def idle_guards(gate: Gate, pools: Mapping[str, int]) -> list[str]:
    """Say which generated tasks have too few documents to guard, one a line."""
    if gate.guard is not None or PAST_PERPLEXITY in guards(gate, pools):
        return []
    return [
        f"evaluate.gate: {PAST_PERPLEXITY} does not guard: earlier nights left {count} held-out "
        f"rows that tonight does not train on (those of a group count once), and it takes "
        f"{fewest(gate)}"
        for task, count in pools.items()
        if task == PAST_PERPLEXITY
    ]


def targets(gate: Gate, pools: Mapping[str, int]) -> tuple[str, ...]:
    """Return the tasks of which one must gain."""
    return gate.target if gate.target is not None else tuple(t for t in NEW_SKILL if t in pools)


def fewest(gate: Gate, *, tails: bool = True) -> int:
    """Return the units with which a guard that is scored in nats a byte can pass at all."""
    rule = likelihood_rule("guard", margins_of(gate, 1.0), tails=tails)
    units = least_units(rule, "log_likelihood", gate.alpha)
    assert units is not None  # what never changes is shown to lose nothing, some time
    return units


def judge_night(
    scores: ModelScores, gate: Gate, pools: Mapping[str, int], alpha: float | None = None
) -> Decision:
    """Decide whether tonight's 4-bit model may serve.

    Args:
        scores: Model -> task -> scores; of a task the models have the same documents.
        gate: The configured rules.
        pools: Task -> units there are of it.
        alpha: Chance of an error; None for the share of one night.
    """
    candidate = scores.get(CANDIDATE, {})
    held = references(scores, gate)
    missing = [] if held else ["nothing was evaluated to hold it against"]
    asked: list[tuple[Rule, Differences]] = []
    guarding = guards(gate, pools)
    for number, (reference, multiple) in enumerate(held.items()):
        roles: list[tuple[Role, str]] = [("guard", task) for task in guarding]
        # To be better than the anchor too is no merit of tonight's.
        roles += [("target", task) for task in targets(gate, pools)] if not number else []
        for role, task in roles:
            before, after = scores[reference].get(task), candidate.get(task)
            if before is None or after is None:
                missing.append(f"{task} was not evaluated of both {reference} and tonight's model")
                continue
            margins, tails = margins_of(gate, multiple), task not in spared(guarding)
            try:
                asked.append(question(task, role, reference, before, after, margins, tails=tails))
            except (ParityError, ContractError, ConfigError) as error:
                missing.append(str(error))
    found = decide(
        asked,
        gate.alpha if alpha is None else alpha,
        _floors(gate, candidate),
        gain=gate.target != (),
    )
    unscored = sorted(gate.floors.keys() - candidate.keys())
    missing += [f"{task} has a floor and was not evaluated" for task in unscored]
    if not missing or found.verdict == "refuse":
        return found
    reasons = (*missing, *(found.reasons if found.verdict != "promote" else ()))
    return replace(found, verdict="not enough evidence", reasons=reasons, units_needed=None)


def read_verdict(evaluation: Path, gate: Gate, alpha: float | None = None) -> Decision:
    """Judge by the samples of an evaluation; see `judge_night`."""
    return judge_night(read_models(evaluation), gate, read_pools(evaluation), alpha)


def margins_of(gate: Gate, multiple: float) -> Margins:
    """Return what a guard may lose against one reference, of which some let more be lost."""
    return Margins(gate.margin * multiple, gate.accuracy_margin * multiple, gate.broken_share)


def _floors(gate: Gate, candidate: Mapping[str, TaskScores]) -> list[Floor]:
    floors = []
    for task, least in sorted(gate.floors.items()):
        documents = candidate[task].documents if task in candidate else ()
        if not documents:
            continue
        right = all(each.score in {0.0, 1.0} for each in documents)
        values = [each.score if right else each.fine for each in documents]
        floors.append(Floor(task, sum(values) / len(values), least))
    return floors
