"""A server on this machine that gives good and bad files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind, _, _ = self.path.strip("/").partition("/")
        self.server.requests.append(kind)
        packed = self.server.packed
        with suppress(BrokenPipeError, ConnectionResetError):
            if kind == "good":
                self._send(packed, len(packed))
            elif kind == "chunks":  # no length announced
                self._send(packed, None)
            elif kind == "short":  # breaks off
                self._send(packed[: len(packed) // 2], len(packed))
            elif kind == "short-silent":  # ends early without having announced a length
                self._send(packed[: len(packed) // 2], None)
            elif kind == "wrong":
                self._send(self.server.other, len(self.server.other))
            elif kind == "garbage":
                self._send(b"<html>not here</html>", 21)
            elif kind == "huge":
                self._send(b"", 10**12)
            elif kind == "endless":
                self._send(b"", None)
                while not self.server.closing.is_set():
                    self.wfile.write(b"x" * 65536)
            elif kind == "silent":
                self._send(packed[:10], len(packed))
                self.server.closing.wait(20)
            elif kind == "drip":
                self._send(b"", None)
                while not self.server.closing.wait(0.02):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            else:
                self.send_error(404)

    def _send(self, content: bytes, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Serves `packed` under /good/..., and other things under other names."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, packed: bytes, other: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.packed, self.other = packed, other
        self.requests: list[str] = []
        self.closing = threading.Event()

    def mirror(self, kind: str) -> str:
        """The address of a mirror of this kind."""
        return f"http://127.0.0.1:{self.server_address[1]}/{kind}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what is tested."""


@contextmanager
def serving(packed: bytes, other: bytes) -> Iterator[Server]:
    """A running server."""
    server = Server(packed, other)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
