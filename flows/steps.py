"""Steps of `prefect deploy`: a deployment's parameters from the configuration files people edit."""

from pathlib import Path
from typing import Any

from requant.config.loading import load_config


def read_config(path: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read and check a configuration; `prefect.yaml` hands it to the flow as its parameter.

    Args:
        path: YAML file.
        overrides: `section.field=value` items.

    Returns:
        The key `config`, and `state` for flows that need no more of it.

    Raises:
        ConfigError: Where the configuration cannot work; nothing is deployed then.
    """
    config = load_config(Path(path), overrides or [])
    return {"config": config.model_dump(mode="json"), "state": str(config.state)}
