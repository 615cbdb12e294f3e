"""The look before the night, with what only this side knows: secrets and the tracking server."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from requant.config import Config
from requant.errors import RequantError, is_transient
from requant.preflight import Problem, find_problems, refuse
from requant.serving.deploy import check_secret, needed_secrets
from tasks.secrets import redactor_of, resolve_secret
from tasks.tracking.connection import probe


def problems_of(config: Config) -> list[Problem]:
    """List everything that is wrong before the first stage."""
    redact = redactor_of(config)
    problems = find_problems(config, more=(tracking_problems, secret_problems))
    return [replace(problem, text=redact(problem.text)) for problem in problems]


def refuse_problems(config: Config) -> None:
    """Refuse a night that cannot end well, with all reasons at once.

    Raises:
        ConfigError, TransientError: As `requant.preflight.refuse`.
    """
    refuse(problems_of(config))


def tracking_problems(config: Config) -> Iterable[Problem]:
    """Reach the tracking server; what is raised names its field, and is a problem to the caller."""
    if config.tracking.uri:
        probe(config.tracking.uri)
    return ()


def secret_problems(config: Config) -> Iterator[Problem]:
    """Find the secrets of the deployment, in the environment and, where a server is, as blocks.

    `requant run` looks a first time before it starts a server of its own, and again as the night
    begins.
    """
    action = config.deploy.action
    for name, reference in needed_secrets(action).items():
        if reference.startswith("block:") and not _reaches_server():
            continue
        try:
            check_secret(action, name, resolve_secret(reference).get_secret_value())
        except RequantError as error:
            yield Problem("deploy.action", str(error), may_pass=is_transient(error))


def _reaches_server() -> bool:
    """Tell whether Prefect's client has a server to ask and need not start one."""
    from prefect.context import FlowRunContext
    from prefect.settings import PREFECT_API_URL

    return FlowRunContext.get() is not None or bool(PREFECT_API_URL.value())
