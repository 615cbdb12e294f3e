"""How the command line's tables look."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from tasks.nightly.pages import NightSummary


def print_summary(summary: "NightSummary", prefect_page: str, state: Path) -> None:
    """Print the table of a night and where to look.

    Args:
        summary: Of the night.
        prefect_page: Its address; empty where its server has ended.
        state: Folder of the night.
    """
    rows = table("stage", "state", "seconds", "digest", "headline")
    for row in summary.rows:
        seconds = f"{row.seconds:.1f}" if row.seconds is not None else ""
        rows.add_row(row.stage, row.state, seconds, (row.digest or "")[:12], row.headline)
    show(rows)
    if summary.survival:
        heading, *steps = summary.survival
        ledger = table(*heading)
        for step in steps:
            ledger.add_row(*step)
        show(ledger)
    for line in summary.survival_words:
        typer.echo(line)
    for row in summary.rows:
        # What failed a night its error says.
        if row.state == "refused":
            typer.echo(f"{row.error}\n")
    typer.echo(f"report:   {summary.report}")
    binaries = _shown(Path(sys.executable).parent)
    if prefect_page:
        typer.echo(f"Prefect:  {prefect_page}")
    else:
        home = os.environ.get("PREFECT_HOME", "~/.prefect")
        folder = shlex.quote(str(state))
        typer.echo(
            f"Prefect:  PREFECT_HOME={home} {binaries}/requant up --servers --state {folder}"
        )
        typer.echo("          then log in as it says and open http://127.0.0.1:4200/runs")
    if summary.mlflow_page.startswith("http"):
        typer.echo(f"MLflow:   {summary.mlflow_page}")
        typer.echo(f"          all nights: {summary.mlflow_nights}")
        return
    if summary.mlflow_uri == f"sqlite:///{state.resolve()}/mlflow.db" and not prefect_page:
        typer.echo("MLflow:   the same command starts it")
    else:
        server = f"{binaries}/mlflow server --app-name requant"
        typer.echo(f"MLflow:   {server} --backend-store-uri {summary.mlflow_uri}")
        typer.echo("          with REQUANT_MLFLOW_AUTH=user:password and PYTHONPATH=. set")
    typer.echo(f"          then open http://127.0.0.1:5000/{summary.mlflow_page}")


def table(*columns: str) -> Table:
    """Make an empty table whose cells show all they hold."""
    rows = Table(box=SIMPLE_HEAD)
    for column in columns:
        rows.add_column(column, no_wrap=column == columns[0], overflow="fold")
    return rows


def show(content: RenderableType) -> None:
    """Print something rich draws."""
    # Off a terminal rich assumes 80 columns and would cut digests.
    Console(width=None if sys.stdout.isatty() else 140).print(content)


def _shown(path: Path) -> Path:
    """Spell a path as a person would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@dataclass(frozen=True)
class Bar:
    """Shows on a progress bar what long work says of itself."""

    shown: "Progress"
    task: "TaskID"

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Nothing is trained."""

    def progress(self, done: int, total: int, unit: str) -> None:
        self.shown.update(self.task, completed=done, total=total, description=unit)

    def message(self, text: str) -> None:
        self.shown.console.print(text)
