"""Secrets by reference: the configuration names them, and only who needs one looks it up."""

import os
from typing import cast

from requant.errors import ConfigError, TransientError


def resolve_secret(reference: str) -> str:
    """Return the value behind `env:NAME` or `block:NAME`, a Prefect Secret block.

    Raises:
        ConfigError: If there is none, or it is empty; the text names the reference, never a value.
        TransientError: If Prefect's server cannot be reached.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name)
        if not value:
            raise ConfigError(
                f"secret {reference!r}: the environment has no {name}; set it where the worker runs"
            )
        return value
    from httpx import HTTPError
    from prefect.blocks.system import Secret

    made_by = (
        f'make it with `python -c "from prefect.blocks.system import Secret; '
        f"Secret(value='...').save({name!r}, overwrite=True)\"`"
    )
    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError as error:
        raise ConfigError(
            f"secret {reference!r}: Prefect has no Secret block {name!r}; {made_by}"
        ) from error
    except HTTPError as error:
        raise TransientError(
            f"secret {reference!r}: Prefect's server cannot be reached: {error}"
        ) from error
    value = block.get()
    if not value:
        raise ConfigError(f"secret {reference!r}: the Secret block {name!r} is empty; {made_by}")
    return value
