"""Steps of `prefect deploy`: a deployment's parameters from the configuration files people edit."""

import sys
from pathlib import Path
from typing import Any

from requant.config.loading import load_config
from requant.preflight import find_problems


def read_config(
    path: str, overrides: list[str] | None = None, tracking_uri: str = "", tracking_pages: str = ""
) -> dict[str, Any]:
    """Read and check a configuration; `prefect.yaml` hands it to the flow as its parameter.

    Args:
        path: YAML file.
        overrides: `section.field=value` items.
        tracking_uri: In place of `tracking.uri`, where it is not empty.
        tracking_pages: In place of `tracking.pages`, where it is not empty.

    Returns:
        `config`; of it `name`, for the trigger that a promotion starts, and `state`, for flows that
        need no more.

    Raises:
        ConfigError: Where the configuration cannot work; nothing is deployed then.
    """
    of_the_machine = {"tracking.uri": tracking_uri, "tracking.pages": tracking_pages}
    given = [f"{field}={value}" for field, value in of_the_machine.items() if value]
    config = load_config(Path(path), [*(overrides or []), *given])
    # Tonight's file may not be there yet, so at this moment they are warnings.
    for problem in find_problems(config):
        print(f"warning: a night started now would be refused: {problem}", file=sys.stderr)
    return {
        "config": config.model_dump(mode="json"),
        "name": config.name,
        "state": str(config.state),
    }
