"""The process that Ray starts on a machine: it makes a worker once, and runs shards."""

import os
import platform
from typing import Any

import torch

from kshot.engine.engine import MakeWorker, Worker


class RayWorker:
    """An actor.

    Args:
        num_threads: Of torch, in this process.
    """

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._worker: Worker[Any, Any] | None = None

    def place(self) -> tuple[str, int]:
        """Return the machine's name and the process id."""
        return platform.node(), os.getpid()

    def start(self, make_worker: MakeWorker[Any, Any]) -> None:
        """Make the worker."""
        self._worker = make_worker()

    def run(self, shard: Any) -> Any:
        """Return the result of a shard."""
        assert self._worker is not None  # `start` comes first
        return self._worker(shard)
