"""The command that says whether one model may take the place of another."""

from typing import TYPE_CHECKING, Annotated

import typer

from requant.cli.common import DEFAULT_STATE, StateFolder, errors, open_store

if TYPE_CHECKING:
    from requant.gate import Decision

STATUSES = {"promote": 0, "refuse": 1, "not enough evidence": 3}
"""What a script goes on by; 2 is an error, as everywhere."""


def gate(
    candidate: Annotated[str, typer.Argument(help="start of a model's digest")],
    reference: Annotated[str, typer.Argument(help="start of the digest of what serves now")],
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
) -> None:
    """Decide between two models of one evaluation: promote, refuse, or not enough evidence.

    Ends with status 0, 1 or 3.
    """
    with errors():
        from requant.evaluation.judging import Margins
        from requant.evaluation.verdict import evaluated_together, judge

        decision = judge(
            evaluated_together(open_store(state), candidate, reference),
            alpha=alpha,
            margins=Margins(margin, margin_of_accuracy),
            tasks=task or (),
        )
    typer.echo("\n".join(_lines(decision)))
    raise typer.Exit(STATUSES[decision.verdict])


def _lines(decision: "Decision") -> list[str]:
    lines = [decision.verdict, *(f"  {reason}" for reason in decision.reasons)]
    if decision.outlook:
        lines.append(decision.outlook)
    return lines
