"""The engine of many machines: workers are actors of a Ray cluster."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from kshot.engine.engine import MakeWorker, R, S
from kshot.engine.ray_connection import check_address, connect, import_ray
from kshot.engine.ray_pool import Finished, Lost, RayPool
from kshot.engine.worker_plan import plan_workers
from kshot.errors import ConfigError, EngineError

MAX_ATTEMPTS = 3  # of a shard: machines are lost, but one that has lost three is their undoing


class RayEngine:
    """Runs shards on a Ray cluster, or on a Ray of this machine.

    Each worker is a process that is made once and takes one shard after another. A worker that is lost, with
    its machine or alone, is replaced, and its shard alone is done again. However a run ends, its workers end
    with it. A Ray that this program is connected to already is used, and left as it is.

    A cluster that asks for a token is reached by address with Ray's own `RAY_AUTH_MODE=token`, as Ray hands
    a token to no address unasked.

    Args:
        address: `HOST:PORT` of the cluster or `auto`; None: that of `RAY_ADDRESS`, or a Ray of this machine
            that ends with the program.
        num_workers: None: one for each GPU; without any, as many as share the cores out, up to 4 for each.
        say: Told in a line of workers that are lost.

    Raises:
        ConfigError: The address or the number cannot be used.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_workers: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"the number of workers must be at least 1, got {num_workers}: raise it")
        check_address(address)
        self._ray = import_ray()
        self._address = address
        self._num_workers = num_workers
        self._say = say or (lambda text: None)
        self._connected_here = False

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave Ray, if this engine connected to it."""
        if self._connected_here:
            self._ray.shutdown()
        self._connected_here = False

    def run(self, make_worker: MakeWorker[S, R], shards: Sequence[S]) -> Generator[tuple[int, R], None, None]:
        """As `Engine.run`.

        Raises:
            KshotError: As a worker raised it, while it was made or at a shard.
            ConfigError: The cluster has no room for so many workers.
            EngineError: It cannot be reached, no worker can be placed or started, or a shard has lost
                several.
        """
        if not len(shards):
            return
        with closing(self._pool(make_worker, len(shards))) as pool:
            waiting, names, losses = deque(range(len(shards))), dict[int, str](), Counter[int]()
            num_left = len(shards)
            while num_left:
                for member in pool.idle()[: len(waiting)]:
                    index = waiting.popleft()
                    shard = shards[index]
                    names[index] = str(shard)
                    pool.give(member, index, shard)
                event = pool.next_event()
                if isinstance(event, Finished):
                    num_left -= 1
                    yield event.shard, event.result
                elif isinstance(event, Lost):
                    self._say(_told(event, names))
                    if event.shard is not None:
                        losses[event.shard] += 1
                        _check(losses[event.shard], names[event.shard], event)
                        waiting.appendleft(event.shard)

    def _pool(self, make_worker: MakeWorker[Any, Any], num_shards: int) -> RayPool:
        ray = self._ray
        if not ray.is_initialized():
            connect(ray, self._address)
            self._connected_here = True
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        plan = plan_workers(machines, self._num_workers)
        return RayPool(ray, replace(plan, num_workers=min(plan.num_workers, num_shards)), make_worker)


def _told(lost: Lost, names: Mapping[int, str]) -> str:
    again = "" if lost.shard is None else f"; {names[lost.shard]} will be done again"
    return f"lost a worker, {lost.place}: {lost.reason}{again}"


def _check(num_lost: int, name: str, lost: Lost) -> None:
    if num_lost >= MAX_ATTEMPTS:
        raise EngineError(
            f"expected a result of {name}, got {num_lost} workers lost at it, the last one {lost.place}: "
            f"{lost.reason}; look whether it needs more memory than a machine has"
        )
