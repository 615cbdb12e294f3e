"""A web application behind a password lets nobody else in, by whatever route."""

import base64

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from requant.machine.basic_auth import LOGIN, behind_password

GIVEN = ("requant", "s3cret:with-colon")
HERE = "http://127.0.0.1:5000"


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("inside")


async def talk(socket: WebSocket) -> None:
    await socket.accept()


@pytest.fixture
def client() -> TestClient:
    everything = Route("/{rest:path}", answer, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS"])
    application = Starlette(
        routes=[Mount("/mounted", routes=[everything]), WebSocketRoute("/ws", talk), everything]
    )
    asking = behind_password(application, ":".join(GIVEN))
    return TestClient(asking, base_url=HERE, follow_redirects=False)


def header(credentials: bytes, scheme: str = "Basic") -> dict[str, str]:
    return {"Authorization": f"{scheme} {base64.b64encode(credentials).decode()}"}


@pytest.mark.parametrize("path", ["/", "/mounted/x", "/healthy", "/x/health", "/health/", LOGIN])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
def test_nobody_passes_without_the_password(client: TestClient, method: str, path: str) -> None:
    refused = client.request(method, path)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith('Basic realm="requant"')
    if path != LOGIN and method != "HEAD":
        assert client.request(method, path, auth=GIVEN).text == "inside"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": ""},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic \xff"},
        header(b""),
        header(b"requant:"),
        header(b"requant:s3cret"),
        header(b"requant:s3cret:with-colon\n"),
        header(b"admin:s3cret:with-colon"),
        header(b"\xff\xfe"),
        header(b"requant:s3cret:with-colon", "Bearer"),
        {"Cookie": "requant:s3cret:with-colon"},
    ],
)
def test_nobody_passes_with_another(client: TestClient, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert client.get("/", headers=raw).status_code == 401


def test_its_health_is_everybodys_to_read(client: TestClient) -> None:
    assert client.get("/health").text == "inside"
    assert client.post("/health").status_code == 401


@pytest.mark.parametrize("origin", ["http://127.0.0.1:6000", "http://evil.example", "null"])
def test_a_page_of_another_server_cannot_use_what_a_browser_knows(
    client: TestClient, origin: str
) -> None:
    for method in ("GET", "POST"):
        refused = client.request(method, "/", auth=GIVEN, headers={"Origin": origin})
        assert refused.status_code == 403
    assert client.post("/", auth=GIVEN, headers={"Origin": HERE}).text == "inside"


def test_the_login_leads_to_the_pages_by_an_address_without_the_password(
    client: TestClient,
) -> None:
    led = client.get(LOGIN, auth=GIVEN)
    assert (led.status_code, led.headers["Location"]) == (303, "//127.0.0.1:5000/")


def test_no_socket_is_opened(client: TestClient) -> None:
    for headers in ({}, header(b"requant:s3cret:with-colon")):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/ws", headers=headers):
            pass
