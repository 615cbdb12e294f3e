"""The secrets that an environment holds, and the parts by which one is given away."""

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

HUB_VARIABLES = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
SECRET_VARIABLES = (
    *sorted(HUB_VARIABLES),
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
    "PREFECT_SERVER_API_AUTH_STRING",
    "REQUANT_MLFLOW_AUTH",
)
"""Environment variables that hold the secrets of the servers and of the hub."""
SERVER_VARIABLES = frozenset(SECRET_VARIABLES) - HUB_VARIABLES
"""Those of the servers, which nothing needs that works on models and data."""


_DATABASE = re.compile(r"[\w.+-]+://(?:[^:/@]*:([^@]*)@)?[^?]*\??(.*)", re.DOTALL)
"""Address of a database, as SQLAlchemy divides it: password and query."""


def secret_parts(value: str) -> tuple[str, ...]:
    """Return a secret and the parts of it that would give it away on their own.

    Of a web address those are its path, its query and their pieces; of a database's its password
    and the values of its query; of `user:password` the password.
    """
    parts = [value]
    if re.match(r"https?://", value):
        address = urlsplit(value)
        pieces = re.split(r"[/&=]", f"{address.path}/{address.query}")
        # A server repeats `/path?query` or either.
        parts += [value.partition(address.netloc)[2], address.path, address.query, *pieces]
        parts += map(unquote, pieces)
    elif database := _DATABASE.fullmatch(value):
        password, query = database.groups(default="")
        values = [piece.partition("=")[2] for piece in query.split("&")]
        # One may hold all that a driver wants: odbc_connect=UID%3Dme%3BPWD%3D...
        inner = [word.partition("=")[2] for each in values for word in unquote(each).split(";")]
        parts += [password, unquote(password), *values, *map(unquote, values), *inner]
    elif ":" in value and not re.search(r"\s", value):
        parts.append(value.partition(":")[2])
    return tuple(dict.fromkeys(parts))


def password_of(address: str) -> str:
    """Return the password in the address of a database; empty where it has none."""
    found = _DATABASE.fullmatch(address)
    return unquote(found[1] or "") if found else ""


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return what an environment holds under `SECRET_VARIABLES`, with the parts of each."""
    found = [environment[name] for name in SECRET_VARIABLES if environment.get(name)]
    return tuple(part for value in found for part in secret_parts(value))
