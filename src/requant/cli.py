"""The command line. Heavy imports live inside the commands, so that --help answers at once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from requant.config import Config
    from requant.plan import PlannedStage
    from requant.store import Store

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="YAML file, e.g. configs/tiny.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, may be repeated")
]
Forced = Annotated[
    list[str] | None, typer.Option("--force", help="stage to run again, may be repeated")
]
StateFolder = Annotated[Path, typer.Option("--state", help="state folder of the configuration")]

DEFAULT_STATE = Path(".requant")


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


@app.command()
def init(config: ConfigFile, overrides: Overrides = None) -> None:
    """Make or upgrade the Prefect and MLflow databases, under a lock."""
    with _errors():
        loaded = _load(config, overrides)
        _prepare_environment()
        from tasks import tracking
        from tasks.prefect_server import prepare_prefect

        prepare_prefect()
        uri = tracking.prepare_database(loaded.tracking.uri, loaded.state.resolve())
    typer.echo(f"ready: {loaded.state.resolve()} (MLflow: {tracking.public(uri)})")


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, force: Forced = None) -> None:
    """Run a night: every stage whose work is not already done."""
    with _errors():
        loaded = _load(config, overrides)
        _check_stages(force, loaded)
        _prepare_environment()
        from tasks.prefect_server import prefect_server

        with prefect_server(loaded) as ready:
            # The server takes seconds to start, and so does all this.
            from flows.incremental_training import incremental_training
            from tasks import tracking
            from tasks.night import read_summary

            tracking.prepare_database(loaded.tracking.uri, loaded.state.resolve())
            ready()
            state = incremental_training(loaded, force or [], return_state=True)
            summary = read_summary(loaded, state.state_details.flow_run_id)
    if summary is not None:
        from requant.console import print_summary

        print_summary(summary)
    if not state.is_completed():
        typer.secho(f"{state.name}: {state.message}", fg="red", err=True)
        raise typer.Exit(1)


@app.command()
def status(config: ConfigFile, overrides: Overrides = None, force: Forced = None) -> None:
    """Show what `run` would do and why, without doing it."""
    with _errors():
        loaded = _load(config, overrides)
        _check_stages(force, loaded)
        plans = _plan(loaded, force or [])
    from requant.console import show, table

    rows = table("stage", "would", "digest", "why")
    for plan in plans:
        digest = plan.record.digest[:12] if plan.record else ""
        rows.add_row(plan.stage, plan.state, digest, plan.reason)
    show(rows)


@app.command()
def explain(stage: str, state: StateFolder = DEFAULT_STATE) -> None:
    """Tell why a stage ran the last time: what differs from the time before."""
    with _errors():
        _check_stages([stage])
        from requant.plan import explain_last_run, key_difference

        last, before = explain_last_run(_store(state), stage)
    reason = last.labels.get("reason", "")
    if reason:
        typer.echo(f"{stage}: ran again although its key is unchanged: {reason}")
        return
    if before is None:
        typer.echo(f"{stage}: ran once, because it never had before")
        return
    from requant.console import show, table

    rows = table("field", "before", "now")
    for item in key_difference(before.key_fields, last.key_fields):
        rows.add_row(item.field, str(item.before), str(item.after))
    show(rows)


@app.command()
def lineage(ref: str, state: StateFolder = DEFAULT_STATE) -> None:
    """Show what an artifact was made from. REF is the start of its digest."""
    with _errors():
        from requant.lineage import lineage_tree, tree_lines
        from requant.store import all_records, find_object

        store = _store(state)
        tree = lineage_tree(all_records(store), find_object(store, ref).name)
    typer.echo("\n".join(tree_lines(tree)))


@app.command()
def verify(
    state: StateFolder = DEFAULT_STATE,
    deep: Annotated[
        bool, typer.Option("--deep", help="read every byte; without it names and sizes only")
    ] = False,
) -> None:
    """Check every recorded artifact against its manifest."""
    from rich.progress import track

    from requant.errors import ArtifactError
    from requant.store import all_records, artifact_of, check_sizes, unreadable_records
    from requant.store import verify as verify_bytes

    with _errors():
        store = _store(state)
        refs = {record.digest: artifact_of(store, record) for record in all_records(store)}
        check = verify_bytes if deep else check_sizes
        problems = [f"{path}: is not a record; delete it" for path in unreadable_records(store)]
        harmed = 0
        for ref in track(refs.values(), "verifying", disable=not sys.stderr.isatty()):
            try:
                check(store, ref)
            except ArtifactError as error:
                problems.append(str(error))
                harmed += 1
    for problem in problems:
        typer.secho(problem, fg="red", err=True)
    checked = "every byte" if deep else "names and sizes"
    typer.echo(f"{len(refs) - harmed} of {len(refs)} artifacts are right ({checked})")
    if problems:
        typer.echo("the next run makes a harmed artifact again")
        raise typer.Exit(1)


@app.command()
def gc(
    state: StateFolder = DEFAULT_STATE,
    keep: Annotated[
        int | None, typer.Option(min=1, help="records used last, kept per stage; default: all")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would go")] = False,
) -> None:
    """Delete artifacts nothing refers to and what crashes left behind."""
    with _errors():
        from requant.store.gc import collect, find_garbage

        store = _store(state)
        garbage = find_garbage(store, keep) if dry_run else collect(store, keep)
    done = "would delete" if dry_run else "deleted"
    size = f"{garbage.bytes / 2**20:.1f} MiB"
    typer.echo(f"{done} {len(garbage.folders)} folders ({size}), {len(garbage.records)} records")


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration, for editors."""
    import json

    from requant.config.loading import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@contextmanager
def _errors() -> Iterator[None]:
    """Turn errors raised on purpose into one message and exit status 2, without a traceback."""
    from requant.errors import RequantError, is_transient

    try:
        yield
    except (RequantError, LookupError) as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(2) from error
    except Exception as error:
        if not is_transient(error):
            raise
        text = f"{type(error).__name__}: {error}; a server is away: try again, or work offline"
        typer.secho(f"{text} with HF_HUB_OFFLINE=1", fg="red", err=True)
        raise typer.Exit(2) from error


def _load(path: Path, overrides: list[str] | None) -> "Config":
    from requant.config.loading import load_config

    return load_config(path, overrides or [])


def _store(state: Path) -> "Store":
    from requant.errors import ConfigError
    from requant.store import Store

    if not (state / "actions").is_dir():
        raise ConfigError(
            f"--state {state}: holds no records; give the state folder of a configuration that "
            "has run"
        )
    return Store(state.resolve())


def _check_stages(stages: list[str] | None, config: "Config | None" = None) -> None:
    from requant.config import STAGE_NAMES
    from requant.errors import ConfigError

    for stage in stages or []:
        if stage not in STAGE_NAMES:
            raise ConfigError(f"stage {stage!r}: unknown; valid: {', '.join(STAGE_NAMES)}")
        if config is not None and not config.runs(stage):
            raise ConfigError(f"--force {stage}: is switched off by {stage}.enabled=false")


def _prepare_environment() -> None:
    """Find `flows` and `tasks`, and set what the libraries read from the environment alone."""
    from requant.errors import ConfigError

    here = Path.cwd()
    roots = [path for path in (here, *here.parents) if (path / "flows").is_dir()]
    if not roots:
        raise ConfigError(f"{here}: no flows/ here or above; run requant inside its project folder")
    sys.path.insert(0, str(roots[0]))
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # OpenMP threads that spin long while they wait fight every other process for the cores:
        # with one busy neighbour a training step took three times as long as with this short spin.
        "GOMP_SPINCOUNT": "1000",
        # Bars of libraries inside stages; requant draws one of its own on a terminal.
        "TQDM_DISABLE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _plan(config: "Config", force: list[str]) -> "list[PlannedStage]":
    _prepare_environment()
    from flows.incremental_training import chain
    from requant.plan import Plan
    from requant.store import Store

    plan = Plan(Store(config.state.resolve()), config, force)
    chain(config, plan.call)
    return plan.stages
