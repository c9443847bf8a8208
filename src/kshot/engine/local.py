"""The engine of one process: a single worker, here, one shard after another."""

from collections.abc import Generator, Sequence

from kshot.engine.engine import MakeWorker, R, S


class LocalEngine:
    """Runs shards in this process, in their order."""

    def run(self, make_worker: MakeWorker[S, R], shards: Sequence[S]) -> Generator[tuple[int, R], None, None]:
        """As `Engine.run`; without shards no worker is made."""
        worker = make_worker() if len(shards) else None
        for index in range(len(shards)):
            assert worker is not None
            yield index, worker(shards[index])
