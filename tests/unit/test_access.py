"""The password of the servers: made once, kept for its owner, and handed to shells and browsers."""

import base64
import http.server
import os
import subprocess
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from requant.errors import ConfigError, TransientError
from requant.store import Store
from tasks.servers.access import credentials, expect_protected, make_credentials, write_ways
from tests.support.asking import asking_server

ODD = "o'dd:p@ss/w0rd#%?$(touch x)`\"&<"
"""What a person may choose: nothing of it may end a quote, an address or an attribute."""


def test_it_is_made_once_and_its_owner_alone_reads_it(store: Store) -> None:
    assert credentials(store) == ""
    given = make_credentials(store)
    user, _, password = given.partition(":")
    assert user == "requant"
    assert len(password) >= 43
    assert make_credentials(store) == credentials(store) == given
    assert make_credentials(Store(store.root / "other")) != given


def test_a_person_may_choose_it(store: Store) -> None:
    make_credentials(store)
    assert make_credentials(store, ODD.replace(" ", "")) == ODD.replace(" ", "")
    assert credentials(store) == ODD.replace(" ", "")
    with pytest.raises(ConfigError, match=r"PREFECT_SERVER_API_AUTH_STRING: is not user:password"):
        make_credentials(store, "no-password")


@pytest.mark.parametrize("content", ["", "requant", "requant:", ":x", "a b:c", "a:ü", "a:b\nc:d"])
def test_a_file_that_holds_none_is_named_with_the_way_out(store: Store, content: str) -> None:
    make_credentials(store)
    path = store.access_path("password")
    path.write_text(content)
    for read in (credentials, make_credentials):
        with pytest.raises(ConfigError, match=rf"{path}: is not user:password .*delete the file"):
            read(store)


class Links(HTMLParser):
    """Collects the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "href" and value]


def test_what_is_written_leads_in(store: Store) -> None:
    given = ODD.replace(" ", "")
    ways = write_ways(store, given, "http://127.0.0.1:4200", "http://127.0.0.1:5000")

    script = '. "$1"; echo "$PREFECT_API_URL $PREFECT_API_AUTH_STRING"; env | grep -c ^PREFECT'
    said = subprocess.run(
        ["sh", "-c", script, "sh", ways.environment],
        # Of this process's environment other tests may have left theirs.
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["http://127.0.0.1:4200/api", given, "2"]

    page = Links()
    page.feed(ways.page.read_text())
    prefect, mlflow = map(urlsplit, page.found)
    assert (prefect.netloc, prefect.path) == ("127.0.0.1:4200", "/login.html")
    assert base64.b64decode(prefect.fragment).decode() == given
    assert (mlflow.hostname, mlflow.port, mlflow.path) == ("127.0.0.1", 5000, "/login")
    assert f"{unquote(mlflow.username or '')}:{unquote(mlflow.password or '')}" == given
    # What Prefect's server gives to everybody knows nothing.
    assert given not in (store.prefect_pages / "v1/login.html").read_text()


def test_a_server_that_does_not_ask_for_it_is_refused() -> None:
    with asking_server("requant:right") as url:
        expect_protected("mlflow-server", url, "requant:right")
        with pytest.raises(
            ConfigError, match=r"mlflow-server: runs with another password.*`requant down`, then"
        ):
            expect_protected("mlflow-server", url, "requant:wrong")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(
            ConfigError, match=r"prefect-server: answers every user of this machine, without"
        ):
            expect_protected("prefect-server", f"http://127.0.0.1:{server.server_port}/", "a:b")
        server.shutdown()
    with pytest.raises(TransientError, match="prefect-server: does not answer at"):
        expect_protected("prefect-server", "http://127.0.0.1:9/", "a:b")
