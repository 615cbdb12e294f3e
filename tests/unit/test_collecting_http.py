"""Rows behind an address of http: what is away is tried again, what is not there is refused."""

import base64
import gzip
import socket
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from requant.collecting.read import require_rows
from requant.errors import ConfigError, RequantError, TransientError
from tests.support.reads import GOOD, files, outcome, reads

PASSWORD = base64.b64encode(b"me:hunter2hunter2").decode()


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; below busy/ it is busy, below cut/ it stops in the middle of a file."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if not self.refused():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self.refused():
            return
        if self.path.startswith("/cut/"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(GOOD)
            return
        super().do_GET()

    def refused(self) -> bool:
        status = {"/busy/": 503, "/mine/": 403, "/late/": 404}.get(self.path[:6])
        if self.path == "/late/" or (self.command == "HEAD" and status == 404):
            status = None
        if self.path.startswith("/secret/") and PASSWORD not in self.headers.get(
            "Authorization", ""
        ):
            status = 401
        if status is not None:
            self.send_error(status)
        return status is not None


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "served"
    for name in ("rows/deep", "busy", "mine", "late", "secret", "cut"):
        (folder / name).mkdir(parents=True)
    for name in ("rows/a.jsonl", "late/a.jsonl", "busy/a.jsonl", "secret/a.jsonl", "cut/a.jsonl"):
        (folder / name).write_bytes(GOOD)
    (folder / "rows" / "deep" / "b c.jsonl.gz").write_bytes(gzip.compress(GOOD + b"[\n" + GOOD))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder))) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_a_folder_behind_http_is_read_as_one_of_this_machine(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = served
    single = files(f"{address}/rows/a.jsonl")
    assert reads(single, tmp_path) == reads(files(folder / "rows" / "a.jsonl"), tmp_path)
    expected = [
        "a.jsonl, line 1",
        "deep/b%20c.jsonl.gz, line 1",
        "deep/b%20c.jsonl.gz, line 2",
        "deep/b%20c.jsonl.gz, line 3",
    ]
    for path in ("rows", "rows/", "rows/**"):
        found = reads(files(f"{address}/{path}"), tmp_path)
        assert [read.place for read in found] == expected
        assert [bool(read.row) for read in found] == [True, True, False, True]
    assert [read.place for read in reads(files(f"{address}/rows/*.jsonl"), tmp_path)] == expected[
        :1
    ]
    assert reads(files(f"{address}/rows/*.parquet"), tmp_path) == []
    (folder / "rows" / "a.jsonl").write_bytes(GOOD * 2)
    assert len(reads(single, tmp_path)) == 2


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("busy/a.jsonl", TransientError, r"paths: .* cannot be reached \(503"),
        ("busy/", TransientError, r"paths: .* cannot be reached \(503"),
        ("cut/a.jsonl", TransientError, r"a\.jsonl: cannot be reached \(.*1000 bytes"),
        ("mine/a.jsonl", ConfigError, r"paths: .* is not there, or may not be read \(403"),
        ("none/a.jsonl", ConfigError, r"paths: .* is not there, or may not be read \(404"),
        ("none/", ConfigError, r"paths: .* is not there, or may not be read \("),
        ("secret/a.jsonl", ConfigError, r"paths: .* is not there, or may not be read \(401"),
    ],
)
def test_away_is_told_from_not_there(
    path: str, kind: type[RequantError], said: str, served: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(kind, match=rf"^collect_rows\.sources\.week[.:] ?{said}"):
        reads(files(f"{served[0]}/{path}"), tmp_path)


def test_no_server_is_tried_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for path in ("a.jsonl", "rows/", "*.jsonl"):
        source = files(f"http://127.0.0.1:{port}/{path}")
        with pytest.raises(TransientError, match=r"paths: .* cannot be reached \(.*onnect"):
            reads(source, tmp_path)
        with pytest.raises(TransientError, match=r"paths: .* cannot be reached \(.*onnect"):
            require_rows(source)


def test_a_file_that_vanishes_is_one_bad_read(served: tuple[str, Path], tmp_path: Path) -> None:
    found = reads(files(f"{served[0]}/late", f"{served[0]}/rows/a.jsonl"), tmp_path)
    reason = "cannot be read (no such file); give a file that can be"
    assert outcome(found) == [("a.jsonl", reason), ("a.jsonl, line 1", "")]


def test_a_password_comes_from_netrc(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    found = reads(files(f"{served[0]}/secret/a.jsonl"), tmp_path)
    assert outcome(found) == [("a.jsonl, line 1", "")]
