"""Waiting for the engine without blocking the event loop, until a deadline or until the client leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from fastapi import Request

from kshot.serving.api_errors import ApiError
from kshot.serving.engine import Engine, QueueFullError
from kshot.serving.generation import Generation, GenerationFailedError, Piece

T = TypeVar("T")
RETRY_AFTER_S = 1  # rows leave every second or so; clients wait longer after each refusal by themselves


class PendingAnswer:
    """One answer under way; it is given up when no one iterates over its pieces any more.

    Args:
        engine: Where it is queued, at once.
        generation: What is asked for.
        timeout_s: From now to its end.

    Raises:
        ApiError: 429, too many wait already.
    """

    def __init__(self, engine: Engine, generation: Generation, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._pieces: asyncio.Queue[Piece | GenerationFailedError] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(piece: Piece | GenerationFailedError) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        try:
            self._cancel = engine.submit(generation, deliver)
        except QueueFullError as error:
            raise ApiError(
                429,
                f"expected a free place in the queue, but {error}: try again",
                code="queue_full",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            ) from error

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces.

        Raises:
            ApiError: 504 at the deadline, 500 if the model fails.
        """
        try:
            while True:
                piece = await self._next()
                yield piece
                if piece.finish_reason:
                    return
        finally:
            self._cancel()

    async def _next(self) -> Piece:
        try:
            # not wait_for: before Python 3.12 it loses a cancellation that comes together with a piece
            async with asyncio.timeout(self._deadline - time.monotonic()):
                piece = await self._pieces.get()
        except TimeoutError as error:
            raise ApiError(
                504, f"expected the answer within {self._timeout_s:g} s: lower max_tokens or try again later"
            ) from error
        if isinstance(piece, GenerationFailedError):
            raise ApiError(500, str(piece))
        return piece


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """Return what `work` gives, or None as soon as the client hangs up; the work is then given up.

    Args:
        request: Its body was read.
        work: Raises what it raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
