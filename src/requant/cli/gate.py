"""The command that says whether one model may take the place of another."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from requant.cli.common import DEFAULT_STATE, StateFolder, ended_by_signals, errors, open_store
from requant.cli.console import Bar
from requant.cli.models import Device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.evaluation.together import Side, Together
    from requant.gate import Decision
    from requant.store import Store

STATUSES = {"promote": 0, "refuse": 1, "not enough evidence": 3}
"""What a script goes on by; 2 is an error, as everywhere."""


def gate(
    candidate: Annotated[str, typer.Argument(help="model folder, or the start of its digest")],
    reference: Annotated[str, typer.Argument(help="likewise, of what serves now")],
    task: Annotated[
        list[str] | None, typer.Option(help="to judge by, may be repeated; default: all")
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="chance of letting a harmful model pass")
    ] = 0.05,
    margin: Annotated[
        float, typer.Option(min=1e-9, help="nats a byte that a task may lose on average")
    ] = 0.02,
    margin_of_accuracy: Annotated[
        float,
        typer.Option(min=1e-9, max=0.99, help="share of documents, of tasks without likelihoods"),
    ] = 0.02,
    state: StateFolder = DEFAULT_STATE,
    device: Device = "auto",
) -> None:
    """Decide between two models: promote, refuse, or not enough evidence.

    Where no night has evaluated both, they are asked now what the last evaluation asked. Ends with
    status 0, 1 or 3.
    """
    with errors(), ended_by_signals(), TemporaryDirectory() as scratch:
        from requant.evaluation.judging import Margins
        from requant.evaluation.together import evaluated_together, find_side
        from requant.evaluation.verdict import judge

        store = open_store(state)
        sides = find_side(store, candidate), find_side(store, reference)
        tasks = task or ()
        together = evaluated_together(store, *sides)
        together = together or _asked(store, sides, Path(scratch), device, tasks)
        margins = Margins(margin, margin_of_accuracy)
        decision = judge(together, alpha=alpha, margins=margins, tasks=tasks)
    typer.echo("\n".join(_lines(decision)))
    typer.echo(
        f"by {together.asked_by}, at an error of {alpha:g}; a night's own verdict has no more than "
        "its share of the year's (evaluate.gate)",
        err=True,
    )
    raise typer.Exit(STATUSES[decision.verdict])


def _asked(
    store: "Store", sides: "tuple[Side, Side]", scratch: Path, device: str, tasks: "Sequence[str]"
) -> "Together":
    """Ask both models, with a bar that says how far it is."""
    from rich.progress import Progress

    from requant.evaluation.together import ask_both, questions_of
    from requant.execution.stage import StageContext, empty_folder
    from requant.models.device import resolve_device
    from requant.preflight.folders import refuse_unreadable

    refuse_unreadable(dict(zip(("A", "B"), (side.folder for side in sides), strict=True)))
    evaluation = questions_of(store, sides)
    dataset = evaluation.key_fields["inputs"]["data"]
    typer.echo(
        f"no evaluation has scored both: they are asked the documents of dataset {dataset[:12]}; "
        "tasks of your own and rows of earlier nights are not asked",
        err=True,
    )
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        context = StageContext(
            out=empty_folder(scratch / "out"),
            work=empty_folder(scratch / "work"),
            seed=evaluation.key_fields["seed"],
            device=resolve_device(device),
            reporter=Bar(progress, progress.add_task("", total=None)),
            store=store,
        )
        return ask_both(*sides, evaluation, context, tasks)


def _lines(decision: "Decision") -> list[str]:
    lines = [decision.verdict, *(f"  {reason}" for reason in decision.reasons)]
    if decision.outlook:
        lines.append(decision.outlook)
    return lines
