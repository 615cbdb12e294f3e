"""What the commands share: their options, errors, and the environment of the libraries."""

import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from requant.config import Config
    from requant.store import Store

ConfigFile = Annotated[Path, typer.Argument(help="YAML file, e.g. configs/tiny.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, may be repeated")
]
Forced = Annotated[
    list[str] | None, typer.Option("--force", help="stage to run again, may be repeated")
]
StateFolder = Annotated[Path, typer.Option("--state", help="state folder of the configuration")]

DEFAULT_STATE = Path(".requant")


@contextmanager
def errors() -> Iterator[None]:
    """Turn errors raised on purpose into one message and exit status 2, without a traceback.

    None shows a secret of the environment, and what is logged meanwhile does not either.
    """
    from requant.credentials import secrets_in
    from requant.errors import RequantError, is_disk_full, is_transient
    from requant.machine.withheld import withheld
    from requant.redaction import redactor
    from requant.wording import bounded

    try:
        with withheld(redactor(secrets_in(os.environ))):
            yield
    except (RequantError, LookupError) as error:
        if isinstance(error, (KeyError, IndexError)):
            raise
        typer.secho(bounded(str(error)), fg="red", err=True)
        raise typer.Exit(2) from error
    except Exception as error:
        if is_disk_full(error):
            from requant.store.room import WAY_OUT

            said = f"the disk of what this wrote to is full: {bounded(str(error))}. {WAY_OUT}"
            typer.secho(said, fg="red", err=True)
            raise typer.Exit(2) from error
        if not is_transient(error):
            raise
        text = f"{type(error).__name__}: {bounded(str(error))}; a server is away: try again; where"
        typer.secho(
            f"{text} that is the model hub, HF_HUB_OFFLINE=1 works without it", fg="red", err=True
        )
        raise typer.Exit(2) from error


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that what is half-written goes.

    An interrupt in the middle of a library's C code may come out as an error of the library's own;
    after a signal every error is the interrupt.
    """
    came: list[int] = []

    def end(number: int, frame: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load(path: Path, overrides: list[str] | None) -> "Config":
    """Read a configuration."""
    from requant.config.loading import load_config

    return load_config(path, overrides or [])


def again(command: str, config: Path, overrides: list[str] | None) -> str:
    """Spell a command with a configuration as a person types it."""
    settings = [word for item in overrides or [] for word in ("--set", item)]
    return shlex.join(["requant", command, str(config), *settings])


def open_store(state: Path) -> "Store":
    """Open the store of a state folder that has been used, and close it to other users.

    Raises:
        ConfigError: If the folder holds no records.
    """
    from requant.errors import ConfigError
    from requant.store import Store

    # Of a state where nothing has ended well yet there are attempts alone.
    if not any((state / name).is_dir() for name in ("actions", "attempts")):
        raise ConfigError(
            f"--state {state}: holds no records; give the state folder of a configuration that "
            "has run"
        )
    close_state(state)
    return Store(state.resolve())


def close_state(state: Path) -> None:
    """Close a state folder to everybody but its owner; say what was open, and what still is.

    One that is not there is not made, and one that cannot be closed can still be read.
    """
    from requant.store.privacy import make_private

    if state.is_dir():
        _warn(make_private(state.resolve(), "state"))


def _warn(said: Iterable[str]) -> None:
    for text in said:
        typer.secho(f"warning: {text}", fg="yellow", err=True)


def check_stages(stages: list[str] | None, config: "Config | None" = None) -> None:
    """Refuse names that are no stage, and stages that are off.

    Raises:
        ConfigError: Naming the stage, and the valid ones.
    """
    from requant.config import STAGE_NAMES
    from requant.errors import ConfigError

    for stage in stages or []:
        if stage not in STAGE_NAMES:
            raise ConfigError(f"stage {stage!r}: unknown; valid: {', '.join(STAGE_NAMES)}")
        if config is not None and not config.runs(stage):
            raise ConfigError(f"--force {stage}: is switched off by {stage}.enabled=false")


def keep_private(config: "Config") -> None:
    """Close what a night writes to everybody but its owner; say what was open.

    Raises:
        ConfigError: If the state folder cannot be made.
    """
    from tasks.servers import folders

    _warn(folders.keep_private(config.state.resolve(), config.tracking.uri))


def prepare_environment() -> Path:
    """Find `flows` and `tasks`, and set what the libraries read from the environment alone.

    Returns:
        The project's folder.

    Raises:
        ConfigError: If there is no `flows` here or above.
    """
    from requant.errors import ConfigError

    here = Path.cwd()
    roots = [path for path in (here, *here.parents) if (path / "flows").is_dir()]
    if not roots:
        raise ConfigError(f"{here}: no flows/ here or above; run requant inside its project folder")
    sys.path.insert(0, str(roots[0]))
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # Wherever a run is started: the automation for dead runs waits for three of them.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "TOKENIZERS_PARALLELISM": "false",
        # OpenMP threads that spin long while they wait fight every other process for the cores:
        # with one busy neighbour a training step took three times as long as with this short spin.
        "GOMP_SPINCOUNT": "1000",
        # Bars of libraries inside stages; requant draws one of its own on a terminal.
        "TQDM_DISABLE": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if home := os.environ.get("PREFECT_HOME"):
        # Prefect makes the last folder of the path alone, and warns where it cannot.
        try:
            Path(home).expanduser().mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"PREFECT_HOME={home}: cannot be made ({error.strerror}); name a folder that can"
            ) from error
    return roots[0]
