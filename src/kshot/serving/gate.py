"""What stands before every request: the API key, the rate of each client, size and time of a body."""

import asyncio
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kshot.serving.api_errors import ApiError
from kshot.serving.limits import Limits

_OPEN = ("/", "/health", "/ready")  # without a key: a page that holds nothing, and whether the server lives
_MOST_CLIENTS = 10_000  # whose rates are remembered: 1 MB


class Gate:
    """ASGI middleware that refuses requests before their body is read.

    Args:
        app: What is behind it.
        limits: Key, rate and size.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app = app
        self._key = limits.api_key and f"Bearer {limits.api_key}".encode()
        self._limits = limits
        self._rates = limits.requests_per_minute and ClientRates(limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        await self.app(scope, _checked(receive, self._limits), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").encode()
        if self._key and not secrets.compare_digest(given, self._key):
            raise ApiError(
                401,
                f"expected the server's API key as a bearer token, got {'another' if given else 'none'}",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["path"] == "/metrics":
            return
        wait_s = self._rates.wait_s(scope["client"][0] if scope["client"] else "") if self._rates else 0
        if wait_s:
            raise ApiError(
                429,
                f"expected fewer requests a minute, got one too many: try again in {wait_s:.1f} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(int(wait_s) + 1)},
            )
        # other kinds a web page may send to a server on this machine without being asked for leave
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            raise ApiError(415, f"expected Content-Type application/json, got {kind or 'none'}")


class ClientRates:
    """A token bucket for each client, which holds one minute's requests and fills up steadily.

    Args:
        per_minute: Requests of one client.
        clock: Seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each = 60 / per_minute
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when a client's bucket will be full again

    def wait_s(self, client: str) -> float:
        """Return 0 and count the request, or return the seconds until one would be allowed."""
        now = self._clock()
        if len(self._full_at) >= _MOST_CLIENTS:
            self._full_at = {one: at for one, at in self._full_at.items() if at > now}
        full_at = max(now, self._full_at.get(client, now)) + self._seconds_each
        if full_at - now > 60 + 1e-6:  # rounding must not cost a request
            return full_at - now - 60
        self._full_at[client] = full_at
        return 0.0


def _checked(receive: Receive, limits: Limits) -> Receive:
    """Give the body of a request a size and a deadline; what comes later, a disconnection, has none."""
    deadline = time.monotonic() + limits.body_timeout_s
    complete = False
    size = 0

    async def receive_checked() -> Message:
        nonlocal complete, size
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise ApiError(
                408, f"expected the body within {limits.body_timeout_s:g} s, got a part: send it at once"
            ) from error
        size += len(message.get("body", b""))
        if size > limits.max_body_bytes:
            raise ApiError(
                413, f"expected a body of at most {limits.max_body_bytes} bytes, got more: shorten it"
            )
        complete = not message.get("more_body", False)
        return message

    return receive_checked
