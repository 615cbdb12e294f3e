"""The command line. Heavy imports live inside the commands, so that --help answers at once."""

from collections.abc import Callable
from typing import Annotated

import typer

from requant.cli import artifacts, models, nights, operations
from requant.cli.data import data
from requant.cli.exports import export
from requant.cli.gate import gate
from requant.machine.library_noise import log_only_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from requant import __version__

        typer.echo(f"requant {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Retrain a language model every night and ship it as a 4-bit model."""
    log_only_errors()


COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Nights": (
        nights.run,
        nights.status,
        nights.explain,
        nights.nights,
        nights.blame,
        nights.checkout,
        nights.report,
        nights.init,
        nights.schema,
    ),
    "Operations": (
        operations.up,
        operations.down,
        operations.setup,
        operations.promote,
        operations.anchor,
        operations.rollback,
        operations.deploy,
        operations.notify,
    ),
    "Models": (models.merge, models.undo, models.compare, export, gate),
    "Artifacts": (artifacts.lineage, artifacts.verify, artifacts.gc),
}

for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(data, name="data", rich_help_panel="Nights")
