"""Workers of a Ray cluster: what each is about, and what became of it.

A worker is placed on a machine, started, and then given one shard at a time. Every step is one call, so that
there is at most one answer to wait for from each.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

from kshot.engine.engine import MakeWorker
from kshot.engine.ray_worker import RayWorker
from kshot.engine.worker_plan import WorkerPlan
from kshot.errors import EngineError, KshotError, reason_of

PLACE_TIMEOUT_S = 300.0  # with no worker placed at all; importing torch over a network takes a minute or two
POLL_S = 1.0  # after which the clock above is looked at again
MAX_LOST_STARTS = 3  # in a row: a machine may be lost, but not each that loads the base

Stage = Literal["placing", "starting", "idle", "busy"]


@dataclass(slots=True, eq=False)
class Member:
    """One worker.

    Attributes:
        actor: Ray's handle.
        stage: What it is about.
        answer: What it will answer with; None if idle.
        shard: Its index, if busy.
        place: Machine and process, once known.
    """

    actor: Any
    stage: Stage
    answer: Any
    shard: int = -1
    place: str = "on no machine yet"


@dataclass(frozen=True, slots=True)
class Finished:
    """A shard is done."""

    shard: int
    result: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, and with it what it was at; the pool has put another in its place.

    Attributes:
        shard: The index of the shard; None if it had none.
        place: Where it was.
        reason: What Ray says.
    """

    shard: int | None
    place: str
    reason: str


class RayPool:
    """The workers, all made alike.

    Args:
        ray: The module, connected.
        plan: How many there are, and what each takes.
        make_worker: Sent once to the cluster, and from there to each.
        place_timeout_s: How long to wait for a machine with room.
    """

    def __init__(
        self,
        ray: Any,
        plan: WorkerPlan,
        make_worker: MakeWorker[Any, Any],
        *,
        place_timeout_s: float = PLACE_TIMEOUT_S,
    ) -> None:
        self._ray = ray
        self._plan = plan
        self._place_timeout_s = place_timeout_s
        self._make_worker = ray.put(make_worker)
        self._actor_class = ray.remote(
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus,
            max_restarts=0,  # whoever takes the place of a lost worker is started by us
            scheduling_strategy="SPREAD",
        )(RayWorker)
        self._lost_starts = 0
        self.members: list[Member] = []
        self._placed_at = time.monotonic()
        for _ in range(plan.num_workers):
            self._add()

    def idle(self) -> list[Member]:
        """Return who has nothing to do."""
        return [member for member in self.members if member.stage == "idle"]

    def give(self, member: Member, index: int, shard: Any) -> None:
        """Hand a shard to an idle worker."""
        member.stage, member.shard = "busy", index
        member.answer = member.actor.run.remote(shard)

    def next_event(self) -> Finished | Lost | None:
        """Wait for the next answer; None if all that it changed is that a worker is further on.

        Raises:
            KshotError: As a worker raised it.
            EngineError: No machine has room, or workers are lost as soon as they start.
        """
        member = self._next_answer()
        if member is None:
            return None
        try:
            found = self._ray.get(member.answer)
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, self._ray.exceptions.RayError):
                raise _own(error) from None
            return self._replace(member, reason_of(error.cause))
        except self._ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                raise EngineError(
                    f"a worker cannot be started: {_last_line(error)}; every machine of the cluster needs "
                    "the same Python, Ray and kshot"
                ) from error
            return self._replace(member, reason_of(error))
        return self._advance(member, found)

    def close(self) -> None:
        """End all workers at once, whatever they are about."""
        for member in self.members:
            self._ray.kill(member.actor)
        self.members.clear()

    def _add(self) -> None:
        actor = self._actor_class.remote(self._plan.num_cpus)
        self.members.append(Member(actor, "placing", actor.place.remote()))

    def _next_answer(self) -> Member | None:
        if any(member.stage != "placing" for member in self.members):
            self._placed_at = time.monotonic()
        waiting = {member.answer: member for member in self.members if member.answer is not None}
        ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
        if ready:
            return waiting[ready[0]]
        if time.monotonic() - self._placed_at > self._place_timeout_s:
            plan = self._plan
            raise EngineError(
                f"expected a machine with {plan.num_cpus} free cores and {plan.num_gpus} free GPUs for a "
                f"worker, got none within {self._place_timeout_s:g} s: free some, or ask for other workers"
            )
        return None

    def _advance(self, member: Member, found: Any) -> Finished | None:
        stage, member.answer = member.stage, None
        if stage == "placing":
            machine, pid = found
            member.place = f"process {pid} on {machine}"
            member.stage, member.answer = "starting", member.actor.start.remote(self._make_worker)
            return None
        member.stage = "idle"
        if stage == "starting":
            self._lost_starts = 0
            return None
        return Finished(member.shard, found)

    def _replace(self, member: Member, reason: str) -> Lost:
        self._ray.kill(member.actor)  # it may only be out of reach
        self.members.remove(member)
        if member.stage == "starting":
            self._lost_starts += 1
            if self._lost_starts >= MAX_LOST_STARTS:
                raise EngineError(
                    f"expected workers that start, got {self._lost_starts} lost in a row, the last one "
                    f"{member.place}: {reason}; look whether its memory holds what it loads"
                )
        self._add()
        return Lost(member.shard if member.stage == "busy" else None, member.place, reason)


def _own(error: Any) -> BaseException:
    """Return what a worker raised; errors that are no `KshotError` keep the worker's traceback as a note."""
    cause: BaseException = error.cause
    if not isinstance(cause, KshotError):
        cause.add_note(str(error))
    return cause


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]
