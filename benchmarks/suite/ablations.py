"""Ablations: kshot's own mixture with one thing changed; every value is an arm of its own.

`python benchmarks/suite.py --ablation NAME` stores cells as the benchmark does, in a folder of the ablation.
"""

from collections.abc import Mapping
from typing import Any

from suite.arms import ArmInfo
from suite.budget import DATA, Start
from suite.own_settings import OWN, PAPER

Value = tuple[Mapping[str, Any], Start]
"""Settings of the mixture, and what it starts from."""

_SELECTIONS = {
    "random": "random",
    "rp": "rp",
    "ra": "ra",
    "rp_ra": "rp+ra",
    "full": "paper",
    "ours": "robust",
}


def _own(**changes: Any) -> Mapping[str, Any]:
    return {**OWN, **changes}


def _data(**changes: Any) -> Start:
    return Start(data=DATA.model_copy(update=changes))


ABLATIONS: Mapping[str, Mapping[str, Value]] = {
    "selection": {name: (_own(method=method), Start()) for name, method in _SELECTIONS.items()},
    "data": {
        "none": (_own(), _data(budget=0)),
        "random": (_own(), Start(rows="random")),
        "nearest": (_own(), _data(threshold=1.0)),
        "dedup": (_own(), Start()),
        "round_robin": (_own(), _data(strategy="round_robin")),
        "mmr": (_own(), _data(strategy="mmr")),
    },
    "shots": {f"k{count}": (_own(), Start(num_shots=count)) for count in (1, 5, 10, 16)},
    "experts": {
        f"n{count}": (_own(num_experts=count, num_candidates=max(8, count)), Start())
        for count in (2, 4, 6, 8)
    },
    "top_k": {f"k{count}": (_own(top_k=count), Start()) for count in (1, 2, 3, 4)},
    "budget": {f"rows{count}": (_own(), _data(budget=count)) for count in (0, 24, 48, 96, 192, 384)},
    "router": {
        "random": (_own(router_start="random"), Start()),
        "directions": (_own(router_start="directions"), Start()),
        "scores": (_own(router_start="scores"), Start()),
        "router_only": (_own(trains="router", shared_r=0), Start()),
        "joint": (_own(trains="all", shared_r=0), Start()),
        "slow_router": (_own(router_rate=0.1), Start()),
        "fast_router": (_own(router_rate=10.0), Start()),
        "layer": (_own(router_scope="layer"), Start()),
        "null_expert": (_own(null_expert=True), Start()),
        "paper": (PAPER, Start()),
    },
    "leak": {
        "leak_free": (_own(), Start()),
        "with_own_adapter": (_own(), Start(leak_free=False)),
    },
}


def arms_of(ablation: str) -> dict[str, tuple[ArmInfo, Start]]:
    """Return the arms of an ablation by name, each with what it starts from."""
    return {
        name: (
            ArmInfo(f"{ablation}: {name}", "suite.own.mixture:build", is_tuned=True, settings=settings),
            start,
        )
        for name, (settings, start) in ABLATIONS[ablation].items()
    }
