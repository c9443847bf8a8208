"""How a cluster is shared out among workers."""

import pytest

from kshot.engine.worker_plan import WorkerPlan, plan_workers
from kshot.errors import ConfigError, EngineError


def cpus(*cores: int) -> list[dict[str, float]]:
    return [{"CPU": float(count)} for count in cores]


@pytest.mark.parametrize(
    ("machines", "asked", "plan"),
    [
        (cpus(2), None, WorkerPlan(1, 2, 0)),
        (cpus(2), 2, WorkerPlan(2, 1, 0)),
        (cpus(6), None, WorkerPlan(2, 3, 0)),
        (cpus(8, 8), None, WorkerPlan(4, 4, 0)),
        (cpus(8, 3), None, WorkerPlan(2, 4, 0)),
        (cpus(8, 3), 4, WorkerPlan(4, 2, 0)),
        (cpus(0, 4), 3, WorkerPlan(3, 1, 0)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}], None, WorkerPlan(2, 1, 1)),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}], 3, WorkerPlan(3, 1, 1)),
    ],
)
def test_golden_plans(machines, asked, plan) -> None:
    assert plan_workers(machines, asked) == plan


@pytest.mark.parametrize("asked", range(1, 14))
def test_invariant_planned_workers_fit(asked) -> None:
    cores = (7, 4, 2)
    plan = plan_workers(cpus(*cores), asked)
    assert plan.num_workers == asked
    assert sum(count // plan.num_cpus for count in cores) >= asked
    assert sum(count // (plan.num_cpus + 1) for count in cores) < asked  # none could be larger


def test_too_many_workers_are_refused_with_the_room_there_is() -> None:
    with pytest.raises(ConfigError, match="at most 6 workers, one a core of the cluster, got 7"):
        plan_workers(cpus(4, 2), 7)
    with pytest.raises(ConfigError, match="at most 1 workers, one a GPU of the cluster, got 2"):
        plan_workers([{"CPU": 8.0, "GPU": 1.0}], 2)
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        plan_workers(cpus(4), 0)


def test_a_cluster_without_room_is_refused() -> None:
    with pytest.raises(EngineError, match="got 2 without any"):
        plan_workers([{"memory": 1e9}, {"CPU": 0.0}])
