"""The nights of a line as generations: from whom each comes, what it learned, what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.config.task_names import HELDOUT_PERPLEXITY, OLD_PERPLEXITY
from requant.evaluation.evaluated import evaluated_models
from requant.figures import figure
from requant.ledger.nights import ledger_of
from requant.store import StageRecord, Store
from requant.store.lines import Verdict, read_line
from requant.store.pins import holder

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

TASKS = {"new skill": HELDOUT_PERPLEXITY, "old text": OLD_PERPLEXITY}
"""What a person looks at first, by its column."""
PERPLEXITY = "byte_perplexity"


@dataclass(frozen=True)
class Generation:
    """One night that took rows."""

    night: int
    began: str
    """ISO time, UTC."""
    rows: int
    """New ones that it took, those held out aside."""
    parent: int | None
    """Night whose model served when it began; None: the original, or a model of no night."""
    verdict: Verdict
    reason: str
    model: str | None
    figures: Mapping[str, tuple[float, float]]
    """Column of `TASKS` -> byte perplexity of the base and of the night's model."""
    serves: bool


def generations(store: Store, name: str) -> list[Generation]:
    """Return the nights of a line whose outcome is known, the first one first.

    Raises:
        ArtifactError: If the head of the line cannot be believed, or its ledger is gone.
    """
    line = read_line(store, name)
    counts = ledger_of(store, line.ledger).counts
    evaluated = evaluated_models(store)
    champion = holder(store, name, "champion")
    night_of = {outcome.model: night for night, outcome in line.nights.items() if outcome.model}
    return [
        Generation(
            night=night,
            began=outcome.began,
            rows=sum(each.rows for each in counts if (each.decided, each.night) == key),
            parent=night_of.get(outcome.parent or ""),
            verdict=outcome.verdict,
            reason=outcome.reason,
            model=outcome.model,
            figures=_figures(evaluated.get(outcome.model or "")),
            serves=outcome.model is not None and outcome.model == champion,
        )
        for night, outcome in sorted(line.nights.items())
        for key in [("taken", night)]
    ]


def generations_table(found: Sequence[Generation]) -> "Table":
    """Make a table for a terminal, a night a row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        "night", "began (UTC)", "rows", "parent", "verdict", *TASKS, "model", box=SIMPLE_HEAD
    )
    for each in found:
        table.add_row(
            str(each.night),
            each.began[:16].replace("T", " "),
            f"{each.rows:,}",
            "original" if each.parent is None else f"night {each.parent}",
            _outcome(each),
            *(_arrow(each.figures.get(column)) for column in TASKS),
            _model(each),
        )
    return table


def generations_tree(name: str, found: Sequence[Generation]) -> "Tree":
    """Draw a line as a tree: each night below the one whose model served when it began."""
    from rich.text import Text
    from rich.tree import Tree

    top = Tree(Text(f"{name}: the original"))
    boxes: dict[int | None, Tree] = {None: top}
    for each in found:
        text = f"night {each.night}  {each.rows:,} rows  {_outcome(each)}  {_model(each)}".rstrip()
        boxes[each.night] = boxes.get(each.parent, top).add(Text(text))
    return top


def _outcome(night: Generation) -> str:
    return night.verdict + (f": {night.reason.splitlines()[0]}" if night.reason else "")


def _model(night: Generation) -> str:
    return (night.model or "")[:12] + (", serves" if night.serves else "")


def _figures(record: StageRecord | None) -> dict[str, tuple[float, float]]:
    metrics = record.metrics if record else {}
    found = {}
    for column, task in TASKS.items():
        base, ours = (f"{model}/{task}/{PERPLEXITY}" for model in ("base", "requantized"))
        if base in metrics and ours in metrics:
            found[column] = metrics[base], metrics[ours]
    return found


def _arrow(pair: tuple[float, float] | None) -> str:
    return f"{figure(pair[0])} → {figure(pair[1])}" if pair else ""
