"""What a server counts, as Prometheus reads it."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kshot.serving.engine import Engine

_PATHS = ("/v1/models", "/v1/chat/completions", "/v1/completions")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # up to the longest answer that is waited for


class Metrics:
    """Counters of one server; models are named only after they were found, so that labels stay few.

    Args:
        engine: Whose queue and batch are measured whenever Prometheus asks.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "kshot_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.tokens = Counter(
            "kshot_tokens",
            "Tokens read (prompt) and written (completion).",
            ["model", "kind"],
            registry=registry,
        )
        self.first_piece = Histogram(
            "kshot_first_piece_seconds",
            "From a request to the first piece of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.answer = Histogram(
            "kshot_answer_seconds",
            "From a request to the end of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        waiting = Gauge("kshot_waiting_requests", "Requests outside of the batch.", registry=registry)
        waiting.set_function(lambda: engine.num_waiting)
        running = Gauge("kshot_running_rows", "Rows of the batch.", registry=registry)
        running.set_function(lambda: engine.num_running)

    def response(self) -> Response:
        """Return all counts as text."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def of_answer(self, model: str, prompt_tokens: int) -> "AnswerMetrics":
        """Start to measure one answer."""
        return AnswerMetrics(self, model, prompt_tokens)


class AnswerMetrics:
    """Measures one answer, from now on."""

    def __init__(self, metrics: Metrics, model: str, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._model = model
        self._started = time.monotonic()
        self._num_tokens = 0
        self._has_begun = False
        metrics.tokens.labels(model, "prompt").inc(prompt_tokens)

    def add(self, num_tokens: int, *, is_last: bool) -> None:
        """Count a piece.

        Args:
            num_tokens: Of the answer so far.
            is_last: Whether it is the last one.
        """
        seconds = time.monotonic() - self._started
        if not self._has_begun:
            self._has_begun = True
            self._metrics.first_piece.labels(self._model).observe(seconds)
        self._metrics.tokens.labels(self._model, "completion").inc(num_tokens - self._num_tokens)
        self._num_tokens = num_tokens
        if is_last:
            self._metrics.answer.labels(self._model).observe(seconds)


class CountRequests:
    """ASGI middleware that counts responses; a client that left before is counted as 499, as nginx does."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count what is answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"] if scope["path"] in _PATHS else "other"
        try:
            await self.app(scope, receive, counting)
        finally:
            self._requests.labels(path, str(status)).inc()
