"""A POST goes where it was sent and nowhere else, and a server's words are bounded and clean."""

import base64
import gzip
import json
import logging
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from pydantic import SecretStr

from requant.config.operations import PostAction
from requant.errors import ConfigError, ContractError, RequantError, TransientError
from requant.serving.deploy import act
from requant.serving.release import Release
from tests.support.servers import Answer, says, serving

TOKEN = "tok/en+0123456789"
RELEASE = Release("tiny", 1, "d" * 64, "file:///x", {"acc": 0.5})


def post(url: str, secrets: dict[str, str] | None = None, **fields: Any) -> str:
    action = PostAction(kind="post", **{"url": url, "token": "env:T", "seconds": 5, **fields})
    values = {"env:T": TOKEN, **(secrets or {})}
    return act(action, RELEASE, None, lambda name: SecretStr(values[name]))  # type: ignore[arg-type]


def refused(kind: type[RequantError], answer: Answer, **fields: Any) -> str:
    with serving(answer) as address, pytest.raises(kind) as caught:
        post(f"{address}/hook", **fields)
    assert TOKEN not in str(caught.value)
    return str(caught.value).replace(address, "SERVER")


def test_a_release_reaches_the_server_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy would see what is for this machine alone.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    came: list[Any] = []

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> None:
        came.append((request.path, request.headers["Authorization"], json.loads(body)["model"]))
        says(202)(request, body)

    with serving(answer) as address:
        assert post(f"{address}/hook") == f"{address}/hook answered 202"
    assert came == [("/hook", f"Bearer {TOKEN}", "tiny")]


def test_a_redirect_is_an_error_that_names_the_target_without_its_query() -> None:
    came: list[str] = []

    def other(request: BaseHTTPRequestHandler, _: bytes) -> None:
        came.append(str(request.headers))
        says(200)(request, b"")

    with serving(other) as target:
        host = target.removeprefix("http://")
        said = refused(
            ContractError, says(307, Location=f"http://me:pass@{host}/login?next={TOKEN}#x")
        )
    assert said == (
        f"deploy.action.url: SERVER/hook answered 307 and sends on to {target}/login; nothing was "
        "sent there: give the address of who takes the release itself"
    )
    assert came == []
    path = f"/{base64.b64encode(TOKEN.encode()).decode()}/x"
    assert "sends on to SERVER***/x;" in refused(ContractError, says(302, Location=path))
    assert "sends on to SERVER/hook;" in refused(ContractError, says(301))


@pytest.mark.parametrize(
    ("status", "kind"), [(401, ContractError), (404, ContractError), (503, TransientError)]
)
def test_what_a_server_says_is_cut_and_clean(status: int, kind: type[RequantError]) -> None:
    said = refused(
        kind, says(status, f"no: Bearer {TOKEN}\n\x1b[31mred ".encode() + b"word " * 200)
    )
    assert said.startswith(
        f"deploy.action.url: SERVER/hook answered {status}: no: Bearer *** \\x1b[31mred word word"
    )
    assert said.endswith(" ... (more is left out)")
    assert len(said) < 700
    assert refused(kind, says(status)).endswith(f"answered {status}: it said nothing")


def test_a_token_at_the_end_of_what_is_read_leaves_no_beginning() -> None:
    # 16 KiB are read; the token is cut by that, and white space makes it stand in what is shown.
    body = b"short" + b" " * ((1 << 14) - 5 - 10) + TOKEN.encode() + b" " * 9999
    said = refused(ContractError, says(400, body))
    assert TOKEN[:4] not in said
    assert said.endswith("answered 400: *** ... (more is left out)")


def test_a_server_cannot_fill_the_memory_or_keep_the_night() -> None:
    def endless(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(400)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b"x" * 65536)
        except OSError:
            return

    assert refused(ContractError, endless).endswith("(more is left out)")
    bomb = gzip.compress(b"x" * (50 << 20))
    assert refused(ContractError, says(400, bomb, Content_Encoding="gzip")).endswith(": (packed)")

    def dripping(request: BaseHTTPRequestHandler, _: bytes) -> None:
        try:
            for letter in "HTTP/1.1 200 OK\r\nX-Slow: " + "x" * 200:
                request.wfile.write(letter.encode())
                time.sleep(0.1)
        except OSError:
            return

    began = time.monotonic()
    said = refused(TransientError, dripping, seconds=1)
    assert said == "deploy.action.url: SERVER/hook does not answer within 1 s"
    assert time.monotonic() - began < 10


def test_an_address_that_is_a_secret_is_told_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = "k3y-0123456789"

    def echo(request: BaseHTTPRequestHandler, body: bytes) -> None:
        says(403, f"{request.path} is not allowed for {key}".encode())(request, body)

    with serving(echo) as address, pytest.raises(ContractError) as caught:
        post("env:HOOK", {"env:HOOK": f"{address}/services/{key[:9]}x?key={key}"})
    assert str(caught.value) == (
        "deploy.action.url: env:HOOK answered 403: *** is not allowed for ***"
    )
    # httpx logs the address, httpcore what the server sends.
    assert "httpx" in {record.name for record in caplog.records}
    assert "HTTP Request: POST ***" in caplog.text
    assert key not in caplog.text
    away = {"env:HOOK": f"http://127.0.0.1:9/{key}"}
    with pytest.raises(TransientError, match=r"^deploy.action.url: env:HOOK does not answer \("):
        post("env:HOOK", away)
    with pytest.raises(ConfigError, match="what env:HOOK holds is http:// to another machine"):
        post("env:HOOK", {"env:HOOK": f"http://hook.example/{key}"})


@pytest.mark.parametrize("token", ["two words long", "line\nbreak-in-it", "schlüsselwort"])
def test_a_token_that_no_header_takes_is_refused_by_name(token: str) -> None:
    with pytest.raises(ConfigError, match=r"token: env:T holds blanks or letters that") as caught:
        post("http://127.0.0.1:9/", {"env:T": token})
    assert token not in str(caught.value)
