"""A web application behind a password: whoever brings none gets 401, wherever they ask.

It is asked for before routing, which covers every route there is or will be: pages, files, APIs,
sockets. HTTP Basic and no cookie: a browser keeps what it knows of a server by host and port, while
a cookie of 127.0.0.1 goes to every port, and so to the servers of other users of the machine.
"""

import base64
import secrets
from typing import TYPE_CHECKING

from requant.machine.services import HEALTH

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOGIN = "/login"
"""Leads to the pages: a browser that was sent here with a password keeps it for them."""


def behind_password(application: "ASGIApp", credentials: str) -> "ASGIApp":
    """Let only requests to an ASGI application through that bring the credentials.

    Requests that a page of another server makes a browser send are refused even then: a browser
    adds a password it knows to those too.

    Args:
        application: With a page at `/`, and `/health`, which answers everybody.
        credentials: user:password.
    """
    from starlette.responses import PlainTextResponse, RedirectResponse
    from starlette.websockets import WebSocketClose

    async def asking(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "lifespan":
            answer = application
        elif scope["type"] != "http":
            # No page of MLflow's opens a socket.
            answer = WebSocketClose(1008)
        elif scope["path"] == HEALTH and scope["method"] in {"GET", "HEAD"}:
            answer = application
        elif not _knows(scope, credentials):
            answer = PlainTextResponse(
                "This server asks for a password: `requant up` says where the link is that has it.",
                401,
                {"WWW-Authenticate": 'Basic realm="requant", charset="UTF-8"'},
            )
        elif not _of_this_server(scope):
            answer = PlainTextResponse("Asked for by a page of another server.", 403)
        elif scope["path"] == LOGIN:
            # With the host spelled out: pages cannot fetch anything while the password stands in
            # their address, and a path alone would inherit it.
            answer = RedirectResponse(f"//{_header(scope, b'host')}/", 303)
        else:
            answer = application
        await answer(scope, receive, send)

    return asking


def _knows(scope: "Scope", credentials: str) -> bool:
    scheme, _, given = _header(scope, b"authorization").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        found = base64.b64decode(given, validate=True)
    except ValueError:
        return False
    return secrets.compare_digest(found, credentials.encode())


def _of_this_server(scope: "Scope") -> bool:
    origin = _header(scope, b"origin")
    return not origin or origin.partition("://")[2] == _header(scope, b"host")


def _header(scope: "Scope", name: bytes) -> str:
    found = (value for key, value in scope["headers"] if key == name)
    return bytes(next(found, b"")).decode("latin-1")
