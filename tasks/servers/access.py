"""Who may use the servers of `requant up`: a password in the state folder, and the ways to it.

Each file is for its owner only. The password stands on no command line, which every user of the
machine can read, and is printed nowhere: a terminal's scrollback and the log of a CI stay.
"""

import base64
import re
import secrets
import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote, urlsplit

from requant.errors import ConfigError, TransientError
from requant.machine.basic_auth import LOGIN
from requant.machine.services import status
from requant.outside.files import read_plain
from requant.store import Store, locked
from requant.store.durable import write_durably

USER = "requant"
PASSWORD_BYTES = 32
MAX_BYTES = 1 << 16
"""A longer password would not pass in a header."""
UNAUTHORIZED = 401
PATIENCE_SECONDS = 20.0
"""On a machine whose cores are taken a healthy server takes seconds to answer."""
USABLE = re.compile(r"[!-9;-~]+:[!-~]+")
"""user:password in printable ASCII, the one thing that headers, URLs and shells agree on."""
LOGIN_PAGE = "login.html"
PREFECT_LOGIN = """<!doctype html>
<title>requant</title>
<script>
// Prefect's pages keep user:password here. What follows # never leaves the browser.
const given = location.hash.slice(1);
if (given) localStorage.setItem("prefect-password", given);
location.replace("/");
</script>
"""


@dataclass(frozen=True)
class Ways:
    """Files with which their owner reaches the servers."""

    page: Path
    """For a browser."""
    environment: Path
    """For a shell."""


def make_credentials(store: Store, wanted: str = "") -> str:
    """Return user:password of the servers of a state folder, which it keeps.

    Args:
        store: Of the state folder.
        wanted: In place of a generated one, or of the one that is kept.

    Raises:
        ConfigError: If they cannot be used.
        ArtifactError: If the file they are kept in is no plain file, or cannot be read.
    """
    path = store.access_path("password")
    with locked(store.lock_path("access")):
        if wanted or not path.exists():
            made = wanted or f"{USER}:{secrets.token_urlsafe(PASSWORD_BYTES)}"
            _check(made, "PREFECT_SERVER_API_AUTH_STRING", "set it to that, or to nothing")
            write_durably(path, made.encode())
        return _read(path)


def credentials(store: Store) -> str:
    """Return user:password of the servers of a state folder; empty where none was made.

    Raises:
        ConfigError: If they cannot be used.
        ArtifactError: If the file they are kept in is no plain file, or cannot be read.
    """
    path = store.access_path("password")
    return _read(path) if path.exists() else ""


def _read(path: Path) -> str:
    found = read_plain(path, MAX_BYTES).decode(errors="replace").strip()
    _check(found, str(path), "delete the file, and give `requant down` and `requant up`")
    return found


def _check(found: str, where: str, way_out: str) -> None:
    if not USABLE.fullmatch(found):
        raise ConfigError(f"{where}: is not user:password in printable ASCII; {way_out}")


def write_ways(store: Store, given: str, prefect: str, mlflow: str) -> Ways:
    """Write a page with links that log a browser in, and the settings of a shell.

    Args:
        store: Of the state folder.
        given: user:password.
        prefect: Address of the Prefect server's pages.
        mlflow: Address of the MLflow server's pages.
    """
    ways = Ways(store.access_path(LOGIN_PAGE), store.access_path("environment"))
    write_durably(store.prefect_pages / "v1" / LOGIN_PAGE, PREFECT_LOGIN.encode())
    links = {
        "Prefect": f"{prefect}/{LOGIN_PAGE}#{base64.b64encode(given.encode()).decode()}",
        "MLflow": urlsplit(mlflow)._replace(netloc=_with(given, mlflow), path=LOGIN).geturl(),
    }
    page = [
        "<!doctype html>",
        "<title>requant</title>",
        f"<p>{escape(str(store.root))}: these links hold the password of both servers.</p>",
    ]
    for name, link in links.items():
        page.append(f'<p><a target="_blank" href="{escape(link)}">{name}</a></p>')
    write_durably(ways.page, "\n".join(page).encode())
    exports = {"PREFECT_API_URL": f"{prefect}/api", "PREFECT_API_AUTH_STRING": given}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exports.items()]
    write_durably(ways.environment, "".join(lines).encode())
    return ways


def expect_protected(service: str, url: str, given: str) -> None:
    """Refuse a server that anybody may use, or that takes another password.

    Args:
        service: Its name.
        url: That must not be open.
        given: user:password.

    Raises:
        ConfigError: With the way out.
        TransientError: If it does not answer.
    """
    again = "`requant down`, then `requant up`, start it anew"
    unasked = status(url, "", PATIENCE_SECONDS)
    if unasked is None:
        raise TransientError(f"{service}: does not answer at {url}; try again")
    if unasked != UNAUTHORIZED:
        raise ConfigError(
            f"{service}: answers every user of this machine, without a password, as an earlier "
            f"version started it; {again}"
        )
    if not admits(url, given, PATIENCE_SECONDS):
        raise ConfigError(
            f"{service}: runs with another password than the one in the state folder; {again}"
        )


def admits(url: str, given: str, seconds: float) -> bool:
    """Tell whether a server answers within some seconds, and takes a password."""
    return status(url, given, seconds) not in {None, UNAUTHORIZED}


def _with(given: str, url: str) -> str:
    user, _, password = given.partition(":")
    return f"{quote(user, safe='')}:{quote(password, safe='')}@{urlsplit(url).netloc}"
