"""Secrets by reference: the configuration names them, and only who needs one looks it up."""

import os
from typing import Any, cast

from pydantic import SecretStr

from requant.config import Config
from requant.errors import ConfigError, RequantError, TransientError
from requant.redaction import (
    SHORTEST,
    Redact,
    is_short,
    redactor,
    secret_parts,
    secrets_in,
)
from requant.serving.deploy import needed_secrets


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


def secrets_of_process() -> tuple[SecretStr, ...]:
    """Return the secrets that MLflow, Prefect and the hub find in the environment."""
    return tuple(map(SecretStr, secrets_in(os.environ)))


def redactor_of(config: Config) -> Redact:
    """Return what hides the secrets in this process's environment.

    Those are MLflow's, Prefect's and the hub's, and what `deploy.action` names there; what is in
    Prefect's blocks is known only to who looks it up.
    """
    found = list(secrets_of_process())
    for reference in needed_secrets(config.deploy.action).values():
        if reference.startswith("env:"):
            try:
                found.append(resolve_secret(reference))
            except RequantError:
                # The look before the night says so.
                continue
    return redactor(part for value in found for part in secret_parts(value.get_secret_value()))
