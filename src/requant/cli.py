"""The command line. Heavy imports live inside the commands, so that --help answers at once."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from requant.config import Config
    from requant.plan import PlannedStage
    from requant.store import Store
    from tasks.night import NightSummary
    from tasks.policy import StageTask

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Retrain a language model every night and ship it as a 4-bit model.",
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


@app.command()
def init(config: ConfigFile, overrides: Overrides = None) -> None:
    """Make or upgrade the Prefect and MLflow databases, under a lock."""
    with _errors():
        loaded = _load(config, overrides)
        _prepare_environment()
        from tasks import tracking
        from tasks.databases import prepare_mlflow, prepare_prefect

        prepare_prefect(loaded)
        uri = prepare_mlflow(loaded)
    typer.echo(f"ready: {loaded.state.resolve()} (MLflow: {tracking.public(uri)})")


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, force: Forced = None) -> None:
    """Run a night: every stage whose work is not already done."""
    with _errors():
        loaded = _load(config, overrides)
        _check_stages(force)
        _prepare_environment()
        from flows.incremental_training import incremental_training
        from tasks.databases import prepare_mlflow, prepare_prefect
        from tasks.night import read_summary

        prepare_prefect(loaded)
        # MLflow takes two seconds to import and open, the flow's server longer to start: overlap.
        Thread(target=_quietly, args=(prepare_mlflow, loaded), daemon=True).start()
        state = incremental_training(loaded, force or [], return_state=True)
        summary = read_summary(loaded, state.state_details.flow_run_id)
    if summary is not None:
        _print_summary(summary)
    if not state.is_completed():
        typer.secho(f"{state.name}: {state.message}", fg="red", err=True)
        raise typer.Exit(1)


@app.command()
def status(config: ConfigFile, overrides: Overrides = None, force: Forced = None) -> None:
    """Show what `run` would do and why, without doing it."""
    with _errors():
        loaded = _load(config, overrides)
        _check_stages(force)
        plans = _plan(loaded, force or [])
    table = _table("stage", "would", "digest", "why")
    for plan in plans:
        digest = plan.record.digest[:12] if plan.record else ""
        table.add_row(plan.stage, plan.state, digest, plan.reason)
    _console_print(table)


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
    table = _table("field", "before", "now")
    for item in key_difference(before.key_fields, last.key_fields):
        table.add_row(item.field, str(item.before), str(item.after))
    _console_print(table)


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
    deep: Annotated[bool, typer.Option(help="read every byte, not only names and sizes")] = False,
) -> None:
    """Check every recorded artifact against its manifest."""
    from rich.progress import track

    from requant.errors import ArtifactError
    from requant.store import all_records, artifact_of, check_sizes
    from requant.store import verify as verify_bytes

    with _errors():
        store = _store(state)
        refs = {record.digest: artifact_of(store, record) for record in all_records(store)}
        check = verify_bytes if deep else check_sizes
        problems = []
        size = 0
        for ref in track(refs.values(), "verifying", disable=not sys.stderr.isatty()):
            try:
                size += check(store, ref).size
            except ArtifactError as error:
                problems.append(str(error))
    for problem in problems:
        typer.secho(problem, fg="red", err=True)
    checked = "every byte" if deep else "names and sizes"
    typer.echo(f"{len(refs) - len(problems)} of {len(refs)} artifacts are right ({checked})")
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


def _check_stages(stages: list[str] | None) -> None:
    from requant.config import STAGE_NAMES
    from requant.errors import ConfigError

    for stage in stages or []:
        if stage not in STAGE_NAMES:
            raise ConfigError(f"stage {stage!r}: unknown; valid: {', '.join(STAGE_NAMES)}")


def _quietly(prepare: Callable[["Config"], str], config: "Config") -> None:
    """Call ahead of time what the flow will call again, and then report what is wrong."""
    with suppress(Exception):
        prepare(config)


def _prepare_environment() -> None:
    """Find `flows` and `tasks`, and set what the libraries read from the environment alone."""
    from requant.errors import ConfigError

    here = Path.cwd()
    roots = [path for path in (here, *here.parents) if (path / "flows").is_dir()]
    if not roots:
        raise ConfigError(f"{here}: no flows/ here or above; run requant inside its project folder")
    sys.path.insert(0, str(roots[0]))
    defaults = {
        # The 20 s default is short for a server that starts on two busy cores.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
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
    from requant.plan import PlannedStage, plan_stage
    from requant.store import Store

    store = Store(config.state.resolve())
    plans: list[PlannedStage] = []

    def call(task: "StageTask", **inputs: PlannedStage | None) -> PlannedStage | None:
        stage = task.stage
        section = getattr(config, stage.name)
        if not config.runs(stage.name):
            plans.append(PlannedStage(stage.name, "off", f"{stage.name}.enabled=false"))
            return None
        given = {role: plan for role, plan in inputs.items() if plan is not None}
        plan = plan_stage(store, stage, section, given, seed=config.seed, force=stage.name in force)
        plans.append(plan)
        return plan

    chain(config, call)
    return plans


def _print_summary(summary: "NightSummary") -> None:
    table = _table("stage", "state", "seconds", "digest", "headline")
    for row in summary.rows:
        seconds = f"{row.seconds:.1f}" if row.seconds is not None else ""
        table.add_row(row.stage, row.state, seconds, (row.digest or "")[:12], row.headline)
    _console_print(table)
    typer.echo(f"report:   {summary.report}")
    binaries = _shown(Path(sys.executable).parent)
    if "PREFECT_API_URL" not in os.environ:
        home = os.environ.get("PREFECT_HOME")
        setting = f"PREFECT_HOME={home} " if home else ""
        typer.echo(f"Prefect:  {setting}{binaries}/prefect server start")
        typer.echo("          then open http://127.0.0.1:4200/runs")
    if summary.mlflow_page.startswith("http"):
        typer.echo(f"MLflow:   {summary.mlflow_page}")
    else:
        typer.echo(f"MLflow:   {binaries}/mlflow server --backend-store-uri {summary.mlflow_uri}")
        typer.echo(f"          then open http://127.0.0.1:5000/{summary.mlflow_page}")


def _shown(path: Path) -> Path:
    """Spell a path as a person would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _table(*columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(*columns, box=SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    return table


def _console_print(content: object) -> None:
    from rich.console import Console

    # Off a terminal rich assumes 80 columns and would cut digests.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(content)
