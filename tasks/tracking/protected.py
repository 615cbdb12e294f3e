"""MLflow's server behind a password; `mlflow server --app-name requant` starts it.

MLflow's own way, `--app-name basic-auth`, keeps users and hashes in a database of its own, which
would not follow the password in the state folder, leaves some routes open, and answers pages of
every port of this machine (https://mlflow.org/docs/3.17.2/self-hosting/security/basic-http-auth).
"""

import os
from typing import TYPE_CHECKING

from requant.errors import ConfigError
from requant.machine.basic_auth import behind_password

if TYPE_CHECKING:
    from starlette.types import ASGIApp

MLFLOW = "mlflow-server"
"""Name of the service that `requant up` makes of it."""
APP = "requant"
"""The entry point of this name in pyproject.toml leads to `create_app`."""
CREDENTIALS = "REQUANT_MLFLOW_AUTH"
"""Environment variable: user:password."""


def create_app() -> "ASGIApp":
    """Make MLflow's application behind the password of the environment.

    Raises:
        ConfigError: If the environment has none: without it nothing may be served.
    """
    credentials = os.environ.get(CREDENTIALS, "")
    if not all(credentials.partition(":")):
        raise ConfigError(f"{CREDENTIALS}: is not set to user:password; set it for this server")
    from mlflow.server.fastapi_app import app

    return behind_password(app, credentials)
