"""Commands of a model that serves, and of the servers that run the nights."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from requant.cli.common import (
    DEFAULT_STATE,
    ConfigFile,
    Overrides,
    StateFolder,
    again,
    close_state,
    errors,
    keep_private,
    load,
    prepare_environment,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requant.config import Config
    from tasks.servers.prefect_server import Server

Accelerators = Annotated[int, typer.Option(min=1, help="stages that may fill a GPU at once")]
Processors = Annotated[int, typer.Option(min=1, help="stages that may fill the cores at once")]
VersionOption = Annotated[
    int | None, typer.Option("--version", help="of the registered model; default: the challenger")
]


@contextmanager
def _served(config: ConfigFile, overrides: Overrides) -> "Iterator[tuple[Config, Server]]":
    """Load a configuration and find the Prefect server its commands talk to."""
    with errors():
        loaded = load(config, overrides)
        prepare_environment()
        keep_private(loaded)
        from tasks.servers.prefect_server import prefect_server

        with prefect_server(loaded) as server:
            yield loaded, server


def promote(
    config: ConfigFile,
    version: VersionOption = None,
    reason: Annotated[
        str, typer.Option(help="kept with the version; needed where the gate did not say promote")
    ] = "",
    overrides: Overrides = None,
) -> None:
    """Let an evaluated model serve, and deploy it."""
    with _served(config, overrides) as (loaded, server):
        from tasks.gatekeeping import require_reason
        from tasks.promote import promote as promote_version
        from tasks.promote import registry_of, serving_of
        from tasks.tracking.registry import version_of

        found = version_of(registry_of(loaded), version)
        require_reason(loaded, found, serving_of(loaded), reason)
        say_which(server)
        server.ready()
        promotion = promote_version(loaded, found, reason=reason.strip())
        typer.echo(f"{found.model}: version {found.version} ({found.digest[:12]}) is champion")
        for note in promotion.notes:
            typer.secho(note, fg="yellow", err=True)
        if promotion.to_deploy:
            deploy_promoted(loaded, found.version, server, again("deploy", config, overrides))
        else:
            typer.echo("it is deployed already")


def anchor(
    config: ConfigFile,
    version: Annotated[int, typer.Option("--version", help="of the registered model")],
    reason: Annotated[str, typer.Option(help="kept with the version")],
    overrides: Overrides = None,
) -> None:
    """Hold later models against a version of the line, in place of the one it began with."""
    with errors():
        loaded = load(config, overrides)
        prepare_environment()
        keep_private(loaded)
        from tasks.promote import name_anchor, registry_of
        from tasks.tracking.registry import version_of

        found = version_of(registry_of(loaded), version)
        name_anchor(loaded, found, reason)
        typer.echo(f"{found.model}: version {version} ({found.digest[:12]}) is the anchor")


def rollback(config: ConfigFile, overrides: Overrides = None) -> None:
    """Let the model serve again that did before the champion, and deploy it."""
    with _served(config, overrides) as (loaded, server):
        from tasks.promote import roll_back

        say_which(server)
        server.ready()
        earlier = roll_back(loaded)
        said = f"version {earlier.version} ({earlier.digest[:12]}) is champion again"
        typer.echo(f"{earlier.model}: {said}")
        deploy_promoted(loaded, earlier.version, server, again("deploy", config, overrides))


def deploy(config: ConfigFile, overrides: Overrides = None) -> None:
    """Deploy the champion here and now, unless it is deployed already."""
    with _served(config, overrides) as (loaded, server):
        from flows.deploy_model import deploy_model

        say_which(server)
        server.ready()
        deploy_model(loaded)


def up(
    state: StateFolder = DEFAULT_STATE,
    prefect_port: Annotated[
        int, typer.Option(min=1, max=65535, help="of the Prefect server and its pages")
    ] = 4200,
    mlflow_port: Annotated[
        int, typer.Option(min=1, max=65535, help="of the MLflow server and its pages")
    ] = 5000,
    accelerators: Accelerators = 1,
    processors: Processors = 1,
    servers: Annotated[
        bool, typer.Option("--servers", help="the two servers alone: no worker, no deployments")
    ] = False,
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and deploy prefect.yaml."""
    with errors():
        root = prepare_environment()
        from tasks.servers.machine import start_machine

        given = (prefect_port, mlflow_port, accelerators, processors)
        for line in start_machine(root, state.resolve(), *given, servers_only=servers):
            typer.echo(line)


def setup(
    accelerators: Accelerators = 1,
    processors: Processors = 1,
) -> None:
    """Deploy prefect.yaml on the server of PREFECT_API_URL, with its pool, limits, automation."""
    with errors():
        root = prepare_environment()
        from tasks.servers.machine import set_up_server
        from tasks.servers.prefect_server import named_server

        with named_server():
            for line in set_up_server(root, accelerators, processors, {}):
                typer.echo(line)
    typer.echo("deployed: prefect.yaml")


def down(state: StateFolder = DEFAULT_STATE) -> None:
    """Stop what `up` started; everything it knows survives."""
    with errors():
        prepare_environment()
        close_state(state)
        from tasks.servers.machine import stop_machine

        for line in stop_machine(state.resolve()):
            typer.echo(line)


def notify(
    block: Annotated[str, typer.Argument(help="type/name of a block, e.g. slack-webhook/team")],
) -> None:
    """Send failures, refusals and promotions through a Prefect notification block."""
    with errors():
        prepare_environment()
        from tasks.servers.notifications import notify_through
        from tasks.servers.prefect_server import named_server

        with named_server():
            made = notify_through(block)
    typer.echo(f"automations: {', '.join(made)}")


def say_which(server: "Server") -> None:
    """Tell which server is used where nobody named one."""
    if server.notice:
        typer.echo(server.notice)


def deploy_promoted(config: "Config", version: int, server: "Server", command: str) -> None:
    """Deploy the champion here, or say who on the server does, and which command if nobody."""
    if not server.ours:
        from tasks.servers.listeners import outlook

        typer.echo(outlook(config.name, command))
        return
    from flows.deploy_model import deploy_model

    try:
        deploy_model(config, version)
    except Exception:
        typer.secho(
            f"{config.name}: version {version} is champion and not deployed; what served before "
            f"goes on serving. `{command}` deploys it when the cause is mended, `requant rollback` "
            "goes back",
            fg="red",
            err=True,
        )
        raise
