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
from requant.credentials import (
    HUB_VARIABLES,
    SECRET_VARIABLES,
    SERVER_VARIABLES,
    secret_parts,
    secrets_in,
)
from requant.errors import ArtifactError, ConfigError, RequantError, TransientError
from requant.redaction import SHORTEST, Redact, is_short, redactor
from requant.serving.deploy import needed_secrets
from requant.store import Store
from tasks.servers.access import credentials


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


def short_secrets() -> list[str]:
    """Say which secrets of the environment are too short to be kept out of texts."""
    return [
        f"{name}: has fewer than {SHORTEST} characters and is not kept out of logs; take a longer "
        "one"
        for name in SECRET_VARIABLES
        if (value := os.environ.get(name)) and is_short(secret_parts(value)[-1])
    ]


def variables_of(config: Config) -> frozenset[str]:
    """Name the environment variables with secrets that no stage needs: all but the hub's."""
    named = {reference.partition(":")[2] for reference in _in_environment(config)}
    return frozenset(SERVER_VARIABLES | named - HUB_VARIABLES)


def redactor_of(config: Config) -> Redact:
    """Return what hides the secrets a flow knows before it looks one up.

    Those are `known_secrets`, and what `deploy.action` names in the environment; what is in
    Prefect's blocks is known only to who looks it up.
    """
    found = list(known_secrets(config.state))
    for reference in _in_environment(config):
        # One that is missing is told by the look before the night.
        with suppress(RequantError):
            found.append(resolve_secret(reference))
    return hiding(found)


def hiding(secrets: Iterable[SecretStr]) -> Redact:
    """Return what hides secrets, and the parts that would give each away."""
    return redactor(part for value in secrets for part in secret_parts(value.get_secret_value()))


def _in_environment(config: Config) -> list[str]:
    references = needed_secrets(config.deploy.action).values()
    return [reference for reference in references if reference.startswith("env:")]
