"""How many workers a cluster gets, and what each of them takes of its machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kshot.errors import ConfigError, EngineError

CORES_PER_WORKER = 4  # at most: at the usual 4 to 8 GB a core there is room for a 7B base in bfloat16


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Workers of equal size.

    Attributes:
        num_workers: Of the whole cluster.
        num_cpus: Cores of one, which are also its threads.
        num_gpus: 1 or 0.
    """

    num_workers: int
    num_cpus: int
    num_gpus: int


def plan_workers(machines: Sequence[Mapping[str, float]], num_workers: int | None = None) -> WorkerPlan:
    """Return one worker for each GPU; without any, workers that share out the cores.

    Args:
        machines: Resources of each, as Ray counts them: `CPU` and, where there are some, `GPU`.
        num_workers: So many; None for as many as there is room for.

    Raises:
        ConfigError: There is no room for so many.
        EngineError: No machine has a core.
    """
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"the number of workers must be at least 1, got {num_workers}: raise it")
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    room, unit = (gpus, "GPU") if gpus else (sum(cores), "core")
    if not room:
        raise EngineError(
            f"expected machines with cores or GPUs for workers, got {len(machines)} without any: start them "
            "with 'ray start --num-cpus'"
        )
    if num_workers is not None and num_workers > room:
        raise ConfigError(
            f"expected at most {room} workers, one a {unit} of the cluster, got {num_workers}: lower it"
        )
    if gpus:
        return WorkerPlan(num_workers or gpus, num_cpus=1, num_gpus=1)
    if num_workers is None:
        most = max(cores)
        num_cpus = most // -(-most // CORES_PER_WORKER)
        return WorkerPlan(_fitting(cores, num_cpus), num_cpus, num_gpus=0)
    num_cpus = max(size for size in range(1, max(cores) + 1) if _fitting(cores, size) >= num_workers)
    return WorkerPlan(num_workers, num_cpus, num_gpus=0)


def _fitting(cores: Sequence[int], num_cpus: int) -> int:
    return sum(of_machine // num_cpus for of_machine in cores)
