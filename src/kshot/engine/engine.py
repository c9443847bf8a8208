"""What an engine is: it makes workers, hands shards to them, and gives back results as they come."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

S = TypeVar("S")
R = TypeVar("R")

Worker = Callable[[S], R]
MakeWorker = Callable[[], Worker[S, R]]


class Engine(Protocol):
    """Runs a function over shards."""

    def run(self, make_worker: MakeWorker[S, R], shards: Sequence[S]) -> Generator[tuple[int, R], None, None]:
        """Yield the index of each shard with its result, in the order in which they are finished.

        Args:
            make_worker: Called once for each worker, where that worker is: what it loads serves all of the
                worker's shards. It, shards and results are pickled on the way to other processes.
            shards: One is asked for by its index when a worker is free, and again where a worker was lost:
                a sequence may make them at that moment, so that they need not be in memory together. `str`
                of a shard is what messages call it.

        Raises:
            KshotError: As a worker raised it.
            EngineError: Workers cannot be had, or one shard loses them again and again.
        """
        ...
