"""A web server that asks for a password."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def asking_server(credentials: str) -> Iterator[str]:
    """Serve 200 to who brings user:password, 401 to everybody else; yield the address."""
    known = f"Basic {base64.b64encode(credentials.encode()).decode()}"

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(200 if self.headers["Authorization"] == known else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *words: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
