"""Commands of the store: where artifacts come from, whether they are right, which can go."""

import sys
from typing import Annotated

import typer

from requant.cli.common import DEFAULT_STATE, StateFolder, errors, open_store


def lineage(ref: str, state: StateFolder = DEFAULT_STATE) -> None:
    """Show what an artifact was made from, or which night of a line came from which.

    REF is the start of a digest, or the name of a line that keeps a ledger.
    """
    with errors():
        from requant.cli.console import show
        from requant.report.generations import generations, generations_tree
        from requant.report.lineage import lineage_tree, tree_lines
        from requant.store import all_records, find_object
        from requant.store.lines import line_files

        store = open_store(state)
        if any(path.stem == ref for path in line_files(store)):
            show(generations_tree(ref, generations(store, ref)))
            return
        tree = lineage_tree(all_records(store), find_object(store, ref).name)
    typer.echo("\n".join(tree_lines(tree)))


def verify(
    state: StateFolder = DEFAULT_STATE,
    deep: Annotated[
        bool, typer.Option("--deep", help="read every byte; without it names and sizes only")
    ] = False,
) -> None:
    """Check every artifact against its manifest, and every document against its seal or record."""
    from rich.progress import track

    from requant.store.health import examine

    with errors():
        health = examine(
            open_store(state),
            deep=deep,
            watch=lambda refs: track(refs, "verifying", disable=not sys.stderr.isatty()),
        )
    for problem in health.problems:
        typer.secho(problem, fg="red", err=True)
    right = health.artifacts - len(health.harmed)
    checked = "every byte" if deep else "names and sizes"
    typer.echo(f"{right} of {health.artifacts} artifacts are right ({checked})")
    believed = health.documents - len(health.doubtful)
    kinds = "records, pins, ledgers, lines, results, deployments, attempts, answers"
    typer.echo(f"{believed} of {health.documents} documents can be believed ({kinds})")
    if health.harmed:
        typer.echo("a night that needs a harmed artifact makes it again")
    if health.problems:
        raise typer.Exit(1)


def gc(
    state: StateFolder = DEFAULT_STATE,
    keep: Annotated[
        int | None, typer.Option(min=1, help="records used last, kept per stage; default: all")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would go")] = False,
) -> None:
    """Delete artifacts nothing refers to and what crashes left behind.

    Ends with status 1, and keeps every artifact and record, while a record or a pin cannot be
    believed.
    """
    with errors():
        from requant.store.gc import Garbage, collect, find_garbage
        from requant.wording import printable

        def tell(garbage: Garbage) -> None:
            for reason in garbage.held_back:
                typer.secho(reason, fg="red", err=True)
            if garbage.doubt:
                typer.secho(garbage.doubt, fg="red", err=True)
            for path in garbage.strange:
                typer.echo(f"left alone, it is none of requant's folders: {printable(path)}")
            for user in garbage.in_use:
                typer.echo(f"in use, its folders are not in this list: {user}")
            for path in (*garbage.folders, *garbage.records, *garbage.torn):
                typer.echo(printable(path))

        store = open_store(state)
        if dry_run:
            garbage = find_garbage(store, keep)
            tell(garbage)
        else:
            garbage = collect(store, keep, before=tell)
    done = "would delete" if dry_run else "deleted"
    typer.echo(f"{done} {garbage.in_words}")
    if garbage.held_back:
        raise typer.Exit(1)
