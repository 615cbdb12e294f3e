"""Commands of the data ledger: what became of every row, and what a person decides of some."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from requant.cli.common import ConfigFile, Overrides, close_state, errors, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requant.ledger.fates import Fate
    from requant.ledger.reading import Shown, Status
    from requant.store import Store

data = typer.Typer(
    no_args_is_help=True, help="What became of every row that the nights of a line have read."
)
Night = Annotated[int, typer.Argument(min=1, help="number of the night, as `data status` says it")]
Reason = Annotated[str, typer.Option(help="kept with the night")]


@data.command()
def status(config: ConfigFile, overrides: Overrides = None) -> None:
    """Count the rows by night, source and fate."""
    with errors():
        from requant.ledger.reading import status as counted

        name, store = _line(config, overrides)
        found = counted(store, name)
    _print_status(name, found)


@data.command()
def show(
    config: ConfigFile,
    fate: Annotated[str, typer.Argument(help="e.g. near_duplicate; `data status` lists them")],
    overrides: Overrides = None,
    limit: Annotated[int, typer.Option(min=1, help="rows at most")] = 20,
) -> None:
    """Show rows of one fate: where they stand, what they say, and why."""
    with errors():
        from requant.errors import ConfigError
        from requant.ledger.fates import FATES
        from requant.ledger.reading import show as shown

        if fate not in FATES:
            raise ConfigError(f"FATE {fate!r}: unknown; valid: {', '.join(FATES)}")
        name, store = _line(config, overrides)
        rows = list(shown(store, name, fate, limit))
    for row in rows:
        typer.echo("\n".join(_lines(row)))
    if not rows:
        typer.echo(f"{name}: no row is {fate}")


@data.command()
def release(
    config: ConfigFile, night: Night, reason: Reason = "", overrides: Overrides = None
) -> None:
    """Let the next night take the rows again that were set aside with a refused one."""
    _decide(config, overrides, night, "released", reason)


@data.command()
def discard(
    config: ConfigFile, night: Night, reason: Reason = "", overrides: Overrides = None
) -> None:
    """Never train on the rows that were set aside with a refused night."""
    _decide(config, overrides, night, "discarded", reason)


def _decide(
    config: ConfigFile,
    overrides: Overrides,
    night: int,
    verdict: Literal["released", "discarded"],
    reason: str,
) -> None:
    with errors():
        from requant.ledger.nights import decide_set_aside

        name, store = _line(config, overrides)
        rows = decide_set_aside(store, name, night, verdict, reason)
    ends = "the next night takes them" if verdict == "released" else "no night takes them"
    typer.echo(f"night {night}: {rows} rows are {verdict}, {ends}")


def _line(config: ConfigFile, overrides: Overrides) -> "tuple[str, Store]":
    from requant.errors import ConfigError
    from requant.store import Store

    loaded = load(config, overrides)
    if not loaded.collect_rows.enabled:
        raise ConfigError(
            f"{config}: collect_rows.enabled=false: its nights keep no ledger of rows; see "
            "docs/data-ledger.md"
        )
    close_state(loaded.state)
    return loaded.name, Store(loaded.state.resolve())


def _print_status(name: str, found: "Status") -> None:
    from requant.cli.console import show as print_table
    from requant.cli.console import table as empty_table

    if not found.night:
        typer.echo(f"{name}: no night has read a row yet")
        return
    table = empty_table("night", "source", "rows", "of them", "outcome")
    for (night, source), cell in found.fates.items():
        outcome = found.line.nights.get(night)
        rows, verdict = sum(cell.values()), outcome.verdict if outcome else ""
        table.add_row(str(night), source, f"{rows:,}", _listed(cell), verdict)
    table.add_section()
    every: dict[Fate, int] = {}
    for cell in found.fates.values():
        every |= {fate: every.get(fate, 0) + rows for fate, rows in cell.items()}
    table.add_row("all", "", f"{found.rows:,}", _listed(every), "")
    print_table(table)
    if found.in_progress:
        state = "is in progress" if found.runs else "never ended; the next run goes on with it"
        typer.echo(f"night {found.night} {state}")


def _listed(cell: "Mapping[Fate, int]") -> str:
    from requant.ledger.fates import FATES

    return ", ".join(f"{cell[fate]:,} {fate.replace('_', ' ')}" for fate in FATES if fate in cell)


def _lines(shown: "Shown") -> list[str]:
    from requant.wording import shown as quoted

    row = shown.row
    text = quoted(row.row if row.row is not None else row.excerpt)
    why = shown.reason or row.reason
    decided = "" if shown.decided_in == shown.night else f", decided in night {shown.decided_in}"
    lines = [
        f"row {shown.number}: {row.source}, {row.place} (night {shown.night}{decided}): {text}"
    ]
    if shown.twin:
        why = f"{why}: {shown.twin.source}, {shown.twin.place}".removeprefix(": ")
    return [*lines, f"    {why}"] if why else lines
