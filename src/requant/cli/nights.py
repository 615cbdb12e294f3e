"""Commands of a night: run it, say what it would do, and why."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from requant.cli.common import (
    DEFAULT_STATE,
    ConfigFile,
    Forced,
    Overrides,
    StateFolder,
    again,
    check_stages,
    close_state,
    ended_by_signals,
    errors,
    keep_private,
    load,
    open_store,
    prepare_environment,
)
from requant.cli.operations import deploy_promoted, say_which

if TYPE_CHECKING:
    from requant.config import Config
    from requant.execution.plan import PlannedStage


def init(config: ConfigFile, overrides: Overrides = None) -> None:
    """Make or upgrade the Prefect and MLflow databases, under a lock."""
    with errors():
        loaded = load(config, overrides)
        prepare_environment()
        keep_private(loaded)
        from tasks import tracking
        from tasks.servers.prefect_server import prepare_prefect

        prepare_prefect()
        uri = tracking.prepare_database(loaded.tracking.uri, loaded.state.resolve())
    typer.echo(f"ready: {loaded.state.resolve()} (MLflow: {tracking.public(uri)})")


def run(config: ConfigFile, overrides: Overrides = None, force: Forced = None) -> None:
    """Run a night: every stage whose work is not already done."""
    with errors():
        loaded = load(config, overrides)
        check_stages(force, loaded)
        prepare_environment()
        from requant.errors import TransientError
        from tasks.nightly.preflight import refuse_problems
        from tasks.servers.own import with_pages
        from tasks.servers.prefect_server import flow_run_page, prefect_server

        keep_private(loaded)
        refuse_problems(loaded)
        loaded = with_pages(loaded)

        with prefect_server(loaded) as server:
            say_which(server)
            # The server takes seconds to start, and so does all this.
            from flows.incremental_training import incremental_training
            from tasks import tracking
            from tasks.nightly.pages import read_summary

            # Somebody holds it: the night itself tries as often as runtime.retries says.
            with suppress(TransientError):
                tracking.prepare_database(loaded.tracking.uri, loaded.state.resolve())
            server.ready()
            state = incremental_training(loaded, force or [], return_state=True)
            if not state.is_final():
                raise TransientError(
                    "Prefect's server did not take the end of the night: it is gone, or ill. What "
                    "the stages have finished is kept: start the server again where it does not "
                    f"run (`requant up`); `{again('run', config, overrides)}` goes on from there"
                )
            summary = read_summary(loaded, state.state_details.flow_run_id)
            if summary is not None and summary.to_deploy is not None:
                by_hand = again("deploy", config, overrides)
                deploy_promoted(loaded, summary.to_deploy, server, by_hand)
            page = "" if server.ours else flow_run_page(state.state_details.flow_run_id)
    if summary is not None:
        from requant.cli.console import print_summary

        print_summary(summary, page, loaded.state)
    if not state.is_completed():
        typer.secho(f"{state.name}: {cause(state.message or '')}", fg="red", err=True)
        command = again("run", config, overrides)
        if not state.is_cancelled():
            typer.echo(
                f"when the cause is mended, `{command}` goes on from what is valid", err=True
            )
        raise typer.Exit(1)
    if state.message:
        typer.echo(state.message)


def status(config: ConfigFile, overrides: Overrides = None, force: Forced = None) -> None:
    """Show what `run` would do and why, without doing it; exit status 1 if it would be refused."""
    with errors():
        loaded = load(config, overrides)
        check_stages(force, loaded)
        prepare_environment()
        if loaded.state.is_dir():
            keep_private(loaded)
        from requant.errors import RequantError
        from tasks.nightly.preflight import problems_of

        problems = problems_of(loaded)
        for problem in problems:
            typer.secho(f"problem: {problem}", fg="red", err=True)
        try:
            plans = _plan(loaded, force or [])
        except RequantError as error:
            # A file that no key can be made without is among the problems.
            if not set(str(error).splitlines()) <= set(map(str, problems)):
                raise
            raise typer.Exit(1) from None
    from requant.cli.console import show, table

    rows = table("stage", "would", "digest", "why")
    for plan in plans:
        digest = plan.record.digest[:12] if plan.record else ""
        rows.add_row(plan.stage, plan.state, digest, plan.reason)
    show(rows)
    if problems:
        raise typer.Exit(1)


def nights(
    config: ConfigFile,
    last: Annotated[int, typer.Option(min=1, help="nights at most, the latest")] = 30,
    overrides: Overrides = None,
) -> None:
    """List the nights of a line: rows, parent, verdict, what was won and lost, who serves."""
    with errors():
        from requant.evaluation.matrix import line_rows, summary
        from requant.report.generations import generations, generations_table
        from requant.report.heat_map import in_words
        from requant.store import Store

        loaded = load(config, overrides)
        close_state(loaded.state)
        store = Store(loaded.state.resolve())
        found = generations(store, loaded.name)
        kept = summary(line_rows(store, loaded.name))
    if not found:
        typer.echo(
            f"{loaded.name}: no night of its ledger has ended; nights without collect_rows are on "
            f"the page of `{again('report', config, overrides)} --nights {last}`"
        )
        return
    from requant.cli.console import show

    show(generations_table(found[-last:]))
    if kept:
        typer.echo(in_words(kept))


def checkout(
    config: ConfigFile,
    night: Annotated[int, typer.Argument(min=1, help="number of the night, as `nights` says it")],
    out: Annotated[Path, typer.Option(help="new folder; gets 4bit/ and 16bit/")],
    overrides: Overrides = None,
) -> None:
    """Write the models of a night of the line as ordinary folders, byte for byte."""
    from rich.progress import Progress

    with errors(), ended_by_signals():
        from requant.checkout import check_out
        from requant.cli.console import Bar

        loaded = load(config, overrides)
        close_state(loaded.state)
        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            bar = Bar(progress, progress.add_task("", total=None))
            found = check_out(loaded, night, out, bar)
    for name, digest in found.items():
        typer.echo(f"{out / name}: {digest[:12]}, every byte as it was made")


def blame(
    config: ConfigFile,
    what: Annotated[str, typer.Argument(help="task, or number of a row as `data show` prints it")],
    night: Annotated[
        int | None, typer.Option(min=1, help="whose documents are asked; default: the newest")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Find the generation at which a score turned, asking few of those that are kept."""
    from tempfile import TemporaryDirectory

    from rich.progress import Progress

    with errors(), ended_by_signals():
        loaded = load(config, overrides)
        close_state(loaded.state)
        prepare_environment()
        from requant.cli.console import Bar
        from requant.evaluation.blame import blame as look
        from requant.evaluation.blame import in_words
        from requant.execution.stage import StageContext
        from requant.models.device import resolve_device
        from requant.store import Store

        with (
            TemporaryDirectory(prefix="requant-blame-") as name,
            Progress(transient=True, disable=not sys.stderr.isatty()) as progress,
        ):
            context = StageContext(
                out=Path(name),
                work=Path(name) / "work",
                seed=loaded.seed,
                device=resolve_device(loaded.runtime.device),
                reporter=Bar(progress, progress.add_task("", total=None)),
                store=Store(loaded.state.resolve()),
                line=loaded.name,
            )
            found = look(loaded, what, night, context)
    typer.echo("\n".join(in_words(found)))


def explain(stage: str, state: StateFolder = DEFAULT_STATE) -> None:
    """Tell why a stage ran the last time: what differs from the time before."""
    with errors():
        check_stages([stage])
        from requant.execution.plan import explain_last_run, key_difference

        last, before = explain_last_run(open_store(state), stage)
    reason = last.labels.get("reason", "")
    if reason:
        typer.echo(f"{stage}: ran again although its key is unchanged: {reason}")
        return
    if before is None:
        typer.echo(f"{stage}: ran once, because it never had before")
        return
    from requant.cli.console import show, table

    rows = table("field", "before", "now")
    for item in key_difference(before.key_fields, last.key_fields):
        rows.add_row(item.field, str(item.before), str(item.after))
    show(rows)


def report(
    config: ConfigFile,
    overrides: Overrides = None,
    nights: Annotated[int, typer.Option(min=1, help="the latest so many")] = 30,
) -> None:
    """Write one page of the last nights: what came of each, and how the figures went."""
    with errors():
        loaded = load(config, overrides)
        open_store(loaded.state)
        prepare_environment()
        from tasks.nightly.nights import write_nights

        page = write_nights(loaded, nights)
    typer.echo(page)


def schema() -> None:
    """Print the JSON schema of the configuration, for editors."""
    import json

    from requant.config.loading import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def cause(message: str) -> str:
    """Take what Prefect and Python put before an error's own text off a state's message."""
    from requant import errors as ours

    text = re.sub(r"^Flow run encountered an exception:? ", "", message)
    kind, _, rest = text.partition(": ")
    # The name of another error is part of what it says ("KeyError: 'x'").
    return rest if rest and hasattr(ours, kind) else text


def _plan(config: "Config", force: list[str]) -> "list[PlannedStage]":
    prepare_environment()
    from flows.incremental_training import chain
    from requant.execution.plan import Plan
    from requant.execution.walk import walk
    from requant.store import Store

    plan = Plan(Store(config.state.resolve()), config, force)
    walk(chain, config, plan)
    return plan.stages
