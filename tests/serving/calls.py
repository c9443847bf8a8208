"""Requests without a client library, so that they may be wrong, and what a server counts of them."""

import http.client
import json
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit


class Reply:
    """A response that was read."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()

    @property
    def error(self) -> dict:
        return json.loads(self.text)["error"]


def call(url: str, path: str, body: object = None, **headers: str) -> Reply:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = {} if data is None else {"Content-Type": "application/json"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if data is None else "POST", path, data, kind | named)
    reply = Reply(connection.getresponse())
    connection.close()
    return reply


def count(url: str, sample: str) -> float:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", call(url, "/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait, and fail if it takes longer."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
