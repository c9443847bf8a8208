"""A local HTTP server that remembers what it was sent and answers as a test tells it to."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends back."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answerer = Callable[[dict[str, Any], int], Reply]


def fails(status: int, message: str = "no", **fields: Any) -> Reply:
    """An error as OpenAI sends it; the client waits for a millisecond before it tries again."""
    return Reply({"error": {"message": message, **fields}}, status, {"retry-after-ms": "1"})


class LocalServer:
    """Answers with `reply(request, number of requests before)`; a request holds its path and its body."""

    def __init__(self, reply: Answerer) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send(outer.answer({"path": self.path}, self.headers["Authorization"]))

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send(outer.answer(request | {"path": self.path}, self.headers["Authorization"]))

            def send(self, reply: Reply) -> None:
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: dict[str, Any], key: str | None) -> Reply:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self.keys.append(key)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return self.reply(request, number)
        finally:
            with self._lock:
                self.under_way -= 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
