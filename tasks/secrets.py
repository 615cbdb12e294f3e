"""Secrets by reference: the configuration names them, and only who needs one looks it up."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from requant.config import Config
from requant.config.sources import SqlRows
from requant.credentials import (
    HUB_VARIABLES,
    SECRET_VARIABLES,
    SERVER_VARIABLES,
    password_of,
    secret_parts,
    secrets_in,
)
from requant.errors import ArtifactError, ConfigError, RequantError, TransientError
from requant.redaction import SHORTEST, Redact, is_short, redactor
from requant.serving.deploy import needed_secrets
from requant.store import Store
from tasks.servers.access import credentials

READS_DATABASES = "collect_rows"
"""The stage that needs the addresses of databases."""


def resolve_secret(reference: str) -> SecretStr:
    """Return the value behind `env:NAME` or `block:NAME`, a Prefect Secret block.

    Raises:
        ConfigError: If there is none, or it is empty, or so short that it could not be kept out of
            texts; what it says names the reference, never a value.
        TransientError: If Prefect's server cannot be reached.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name, "")
        missing = f"the environment has no {name}, or an empty one"
        way_out = "set it where the worker runs"
    else:
        value = _of_block(reference, name)
        missing = f"the Secret block {name!r} is empty"
        way_out = _made_by(name)
    if not value.strip():
        raise ConfigError(f"secret {reference!r}: {missing}; {way_out}")
    if is_short(value):
        raise ConfigError(
            f"secret {reference!r}: has fewer than {SHORTEST} characters, which stand in other "
            f"words by chance and could not be kept out of logs; take a longer one, and {way_out}"
        )
    return SecretStr(value)


def _of_block(reference: str, name: str) -> str:
    from httpx import HTTPError
    from prefect.blocks.system import Secret

    try:
        value: Any = cast("Secret[Any]", Secret.load(name)).get()
    except ValueError:
        # Its text may hold what the block does.
        raise ConfigError(
            f"secret {reference!r}: Prefect has no Secret block {name!r}; {_made_by(name)}"
        ) from None
    except HTTPError as error:
        raise TransientError(
            f"secret {reference!r}: Prefect's server cannot be reached ({type(error).__name__})"
        ) from None
    if not isinstance(value, str):
        raise ConfigError(
            f"secret {reference!r}: the Secret block {name!r} holds no text; {_made_by(name)}"
        )
    return value


def _made_by(name: str) -> str:
    return (
        f'make it with `python -c "from prefect.blocks.system import Secret; '
        f"Secret(value='...').save({name!r}, overwrite=True)\"`"
    )


def known_secrets(state: Path) -> tuple[SecretStr, ...]:
    """Return the secrets that MLflow, Prefect and the hub are reached with here.

    They stand in the environment, in Prefect's settings, in the login of the hub, and of the
    servers that `requant up` starts in the state folder.
    """
    found = [*secrets_in(os.environ), *_of_libraries()]
    # One that cannot be used is told by who wants to.
    with suppress(ConfigError, ArtifactError):
        found.append(credentials(Store(state.resolve())))
    return tuple(map(SecretStr, found))


def _of_libraries() -> Iterator[str]:
    # Who has not imported one has read nothing of it but the environment.
    if "prefect.settings" in sys.modules:
        from prefect.settings import get_current_settings

        settings = get_current_settings()
        api, server = settings.api, settings.server
        for value in (api.key, api.auth_string, server.api.auth_string, server.database.password):
            if value is not None:
                yield value.get_secret_value()
        database = server.database.connection_url
        if database is not None and (password := urlsplit(database.get_secret_value()).password):
            yield unquote(password)
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import get_token

        if token := get_token():
            yield token


def short_secrets(config: Config) -> list[str]:
    """Say which secrets of the environment are too short to be kept out of texts."""
    given = {name: os.environ.get(name, "") for name in (*SECRET_VARIABLES, *_databases(config))}
    secrets = {
        **{name: secret_parts(given[name])[-1] for name in SECRET_VARIABLES},
        **{f"the password in {name}": password_of(given[name]) for name in _databases(config)},
    }
    return [
        f"{what}: has fewer than {SHORTEST} characters and is not kept out of logs; take a longer "
        "one"
        for what, value in secrets.items()
        if value and is_short(value)
    ]


def variables_of(config: Config, stage: str) -> frozenset[str]:
    """Name the environment variables with secrets that a stage does not need.

    Those of the hub every stage may need; the addresses of databases who reads their rows.
    """
    named = {reference.partition(":")[2] for reference in _in_environment(config)}
    of_databases = _databases(config) if stage == READS_DATABASES else ()
    return (SERVER_VARIABLES | named) - HUB_VARIABLES - {*of_databases}


def redactor_of(config: Config) -> Redact:
    """Return what hides the secrets a flow knows before it looks one up.

    What is in Prefect's blocks is known only to who looks it up.
    """
    return hiding(secrets_of(config))


def secrets_of(config: Config) -> tuple[SecretStr, ...]:
    """Return `known_secrets`, and what sources and `deploy.action` name in the environment."""
    found = list(known_secrets(config.state))
    for reference in _in_environment(config):
        # One that is missing is told by the look before the night.
        with suppress(RequantError):
            found.append(resolve_secret(reference))
    return tuple(found)


def hiding(secrets: Iterable[SecretStr]) -> Redact:
    """Return what hides secrets, and the parts that would give each away."""
    return redactor(part for value in secrets for part in secret_parts(value.get_secret_value()))


def _in_environment(config: Config) -> list[str]:
    references = needed_secrets(config.deploy.action).values()
    of_the_deployment = [each for each in references if each.startswith("env:")]
    return [*of_the_deployment, *(f"env:{name}" for name in _databases(config))]


def _databases(config: Config) -> list[str]:
    """Name the variables that hold the addresses of databases, where nights read one."""
    sources = config.collect_rows.sources if config.collect_rows.enabled else ()
    named = [each.variable for each in sources if isinstance(each, SqlRows) and each.variable]
    return list(dict.fromkeys(named))
