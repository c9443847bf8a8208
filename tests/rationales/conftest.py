"""A local server that speaks `/v1/chat/completions`, and a writer that says what a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kshot.rationales import Answer, Sampling


@dataclass
class Reply:
    """What the server sends back."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answerer = Callable[[dict[str, Any], int], Reply]


def says(text: Any, *, finish: str = "stop", usage: Any = (40, 12)) -> Reply:
    """A chat completion."""
    counts = usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return Reply(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": choices,
            "usage": counts,
        }
    )


def fails(status: int, message: str = "no", **fields: Any) -> Reply:
    """An error as OpenAI sends it; the client waits for a millisecond before it tries again."""
    return Reply({"error": {"message": message, **fields}}, status, {"retry-after-ms": "1"})


class ChatServer:
    """Answers with `reply(request, number of requests before)` and remembers what it was sent."""

    def __init__(self) -> None:
        self.reply: Answerer = lambda request, number: says("Answer: 4\nIt is so.")
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(request | {"path": self.path})
                    outer.keys.append(self.headers["Authorization"])
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                try:
                    reply = outer.reply(request, number)
                finally:
                    with outer._lock:
                        outer.under_way -= 1
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

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = ChatServer()
    yield found
    found.close()


@dataclass
class Scripted:
    """Says `say(prompt, sampling)`, last prompt first."""

    say: Callable[[str, Sampling], str | Answer]
    identity: Mapping[str, str] = field(default_factory=lambda: {"model": "scripted"})
    asked: list[tuple[str, Sampling]] = field(default_factory=list)

    def answers(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(prompts))):
            self.asked.append((prompts[index], sampling))
            said = self.say(prompts[index], sampling)
            yield index, said if isinstance(said, Answer) else Answer(said, 10, 5)
