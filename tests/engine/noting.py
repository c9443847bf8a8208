"""An engine of two Ray workers that note in a folder which shards they begin; one can be killed at one."""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kshot.engine import RayEngine


@contextmanager
def two_ray_workers() -> Iterator[RayEngine]:
    """Two workers of a Ray of their own, which take this module by value: they cannot import it."""
    ray = pytest.importorskip("ray")
    module = sys.modules[__name__]
    with RayEngine(num_workers=2) as engine:
        ray.cloudpickle.register_pickle_by_value(module)
        yield engine
        ray.cloudpickle.unregister_pickle_by_value(module)


class NotingEngine:
    """Runs shards on another engine, and counts how often each was begun.

    Args:
        engine: Runs the shards.
        folder: Where the notes are.
        kill: A shard, as it is written; the first worker that begins it is killed.
    """

    def __init__(self, engine, folder: Path, kill: str | None) -> None:
        self.engine = engine
        self.folder = folder
        self.kill = kill

    def run(self, make_worker, shards):
        return self.engine.run(_Noting(make_worker, self.folder, self.kill), shards)

    def begun(self) -> Counter[str]:
        return Counter((self.folder / "begun").read_text().splitlines())

    def begun_again(self) -> dict[str, int]:
        """Shards that were begun more than once, and how often."""
        return {shard: times for shard, times in self.begun().items() if times > 1}


class _Noting:
    """Makes the workers that it is given, and lets them note what they do."""

    def __init__(self, make_worker, folder: Path, kill: str | None) -> None:
        self.make_worker = make_worker
        self.folder = folder
        self.kill = kill

    def __call__(self):
        worker = self.make_worker()

        def work(shard):
            with (self.folder / "begun").open("a") as file:
                print(shard, file=file)
            flag = self.folder / "killed"
            if str(shard) == self.kill and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return worker(shard)

        return work
