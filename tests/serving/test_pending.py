"""Waiting for an answer: a client's leaving is never missed, however close it comes to a piece."""

import asyncio
from typing import cast

import pytest

from kshot.serving.api_errors import ApiError
from kshot.serving.engine import Cancel, Engine
from kshot.serving.generation import Deliver, Generation, GenerationFailedError, Piece
from kshot.serving.pending import PendingAnswer

GENERATION = Generation("some", (1,), 400)


class FakeEngine:
    """Hands over what the test delivers."""

    def __init__(self) -> None:
        self.cancelled = False

    def submit(self, generation: Generation, deliver: Deliver) -> Cancel:
        self.deliver = deliver

        def cancel() -> None:
            self.cancelled = True

        return cancel


def piece(reason: str | None = None) -> Piece:
    return Piece("x", (), 1, reason)  # type: ignore[arg-type]


def pending(engine: FakeEngine, timeout_s: float = 30) -> PendingAnswer:
    return PendingAnswer(cast(Engine, engine), GENERATION, timeout_s)


async def collect(answer: PendingAnswer) -> list[Piece]:
    return [one async for one in answer.pieces()]


@pytest.mark.parametrize("turns", range(6))
def test_invariant_a_cancellation_beside_a_piece_is_not_lost(turns: int) -> None:
    async def leave() -> tuple[bool, bool]:
        engine = FakeEngine()
        task = asyncio.ensure_future(collect(pending(engine)))
        await asyncio.sleep(0.01)
        engine.deliver(piece())
        for _ in range(turns):  # of the loop, between the piece and the leaving
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
        ended = task.done()
        task.cancel()
        return ended, engine.cancelled

    assert asyncio.run(leave()) == (True, True)


def test_pieces_come_in_order_until_the_last() -> None:
    async def answer() -> list[Piece]:
        engine = FakeEngine()
        task = asyncio.ensure_future(collect(pending(engine)))
        for one in (piece(), piece(), piece("stop")):
            engine.deliver(one)
        return await task

    assert [one.finish_reason for one in asyncio.run(answer())] == [None, None, "stop"]


@pytest.mark.parametrize(("failure", "status"), [(GenerationFailedError("no"), 500), (None, 504)])
def test_failures_and_deadlines_free_the_row(failure: GenerationFailedError | None, status: int) -> None:
    async def answer() -> bool:
        engine = FakeEngine()
        waiting = pending(engine, timeout_s=0.05)
        if failure:
            engine.deliver(failure)
        with pytest.raises(ApiError) as raised:
            await collect(waiting)
        assert raised.value.status_code == status
        return engine.cancelled

    assert asyncio.run(answer())
