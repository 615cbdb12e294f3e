"""What a night's generated tasks will be able to see, by the gate's rules: said beforehand."""

import statistics
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from requant.config.gate import Gate
from requant.config.task_names import GENERATED, OLD_PERPLEXITY, PAST_PERPLEXITY
from requant.errors import RequantError
from requant.evaluation.evaluated import last_evaluation
from requant.evaluation.judging import likelihood_rule, spared
from requant.evaluation.night_verdict import (
    CANDIDATE,
    guards,
    margins_of,
    references,
    targets,
)
from requant.evaluation.pairs import joined, unit_means
from requant.evaluation.samples import read_models
from requant.gate import smallest_shown
from requant.store import Store, materialise

SPREADS = {OLD_PERPLEXITY: 0.02, PAST_PERPLEXITY: 0.04}
"""Nats a byte, of a document's difference between SmolLM2-135M and what a night made of it
(docs/gate.md): for a line that has not been evaluated yet."""
SPREAD = 0.115
"""Spread of tonight's rows and of the choice, nats a byte: a first night moves these most."""


def spreads_of(evaluation: Path, gate: Gate) -> dict[str, float]:
    """Return task -> spread of the difference to what the candidate was held against, that night.

    Only tasks whose documents are scored by likelihoods are there.
    """
    models = read_models(evaluation)
    held = next(iter(references(models, gate)), None)
    found = {}
    for task, after in models.get(CANDIDATE, {}).items():
        before = models[held].get(task) if held else None
        if before is None or after.terms is None or after.terms.kind != "log_likelihood":
            continue
        try:
            pairs = joined(task, before, after)
        except RequantError:
            continue
        changes = unit_means(pairs, "fine")
        if len(changes) > 1:
            found[task] = statistics.stdev(changes)
    return found


def last_spreads(
    store: Store, line: str, gate: Gate, say: Callable[[str], None]
) -> dict[str, float]:
    """Return the spreads of a line's last evaluation; of one that cannot be read none, and say so.

    What a broken disk or another release left is no reason to end tonight.

    Args:
        store: Of the line.
        line: Its name.
        gate: The configured rules.
        say: Hears what went wrong.
    """
    last = last_evaluation(store, line)
    if last is None:
        return {}
    try:
        return spreads_of(materialise(store, last.digest), gate)
    except Exception as error:
        say(
            f"evaluation {last.digest[:12]} cannot be read ({type(error).__name__}: {error}), so "
            "what tonight can show is said by SmolLM2-135M's spreads"
        )
        return {}


def foreseen(
    gate: Gate,
    units: Mapping[str, int],
    spreads: Mapping[str, float],
    whose: str,
    grouped: Collection[str] = (),
) -> list[str]:
    """Say of each generated task how small a change it can show, one a line.

    Args:
        gate: The configured rules.
        units: Task -> units of the gate there will be: documents, those of one group once.
        spreads: From `spreads_of`; empty for a line that was never evaluated.
        whose: What the spreads were measured on.
        grouped: Tasks of which groups are the units.
    """
    guarding, gaining = guards(gate, units), targets(gate, units)
    lines = []
    for task in (name for name in GENERATED if units.get(name)):
        known = task in spreads
        spread = spreads[task] if known else SPREADS.get(task, SPREAD)
        margins, tails = margins_of(gate, 1.0), task not in spared(guarding)
        said = []
        if task in gaining:
            rule = likelihood_rule("target", margins)
            said.append(_target(smallest_shown(rule, units[task], spread, gate.alpha)))
        if task in guarding:
            rule = likelihood_rule("guard", margins, tails=tails)
            least = smallest_shown(rule, units[task], spread, gate.alpha)
            said.append(_guard(least, gate.margin))
        if said:
            source = whose if known else "SmolLM2-135M"
            of = "groups of documents" if task in grouped else "documents"
            lines.append(
                f"{task}: {units[task]} {of}, spread {spread:.2g} nats a byte (of "
                f"{source}): {'; '.join(said)}"
            )
    return lines


def _target(least: float | None) -> str:
    if least is None:
        return "too few to show any gain"
    return f"a gain of {least:.2g} is shown in four nights of five"


def _guard(least: float | None, margin: float) -> str:
    if least is None:
        return "too few to guard by"
    if least > 0:
        return f"only what gains {least:.2g} is shown to lose no {margin:g}"
    return f"a true loss of up to {-least:.2g} is shown to be below the margin {margin:g}"
