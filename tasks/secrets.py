"""Secrets by reference: the configuration names them, and only who needs one looks it up."""

import os
from typing import cast

from requant.errors import ConfigError


def resolve_secret(reference: str) -> str:
    """Return the value behind `env:NAME` or `block:NAME`, a Prefect Secret block.

    Raises:
        ConfigError: If there is none; the text names the reference, never a value.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        value = os.environ.get(name)
        if not value:
            raise ConfigError(
                f"secret {reference!r}: the environment has no {name}; set it where the worker runs"
            )
        return value
    from prefect.blocks.system import Secret

    try:
        block = cast("Secret[str]", Secret.load(name))
    except ValueError as error:
        raise ConfigError(
            f"secret {reference!r}: Prefect has no Secret block {name!r}; make it with `python -c "
            f"\"from prefect.blocks.system import Secret; Secret(value='...').save({name!r})\"`"
        ) from error
    return block.get()
