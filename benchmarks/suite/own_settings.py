"""The settings of kshot's own arms: the paper's, and the best that folds of shots have shown so far.

Change them here: every arm, ablation and table follows.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from kshot.config import MixtureSettings


class MixtureArm(MixtureSettings):
    """A mixture: which experts, how they are put together, what is trained."""

    method: Literal["paper", "balanced", "robust", "random", "rp", "ra", "rp+ra"] = Field(
        default="paper", description="kshot's, or an ablation of the paper's: a random group, or ranks alone"
    )
    num_experts: int = Field(default=4, ge=1, description="paper")
    num_candidates: int = Field(default=8, ge=1, description="paper")
    trains: Literal["all", "router"] = Field(default="all", description="experts too (paper), or the router")
    router_rate: float = Field(
        default=1.0, gt=0, description="the router's learning rate, in those of the experts (1 in the paper)"
    )
    shot_repeats: int = Field(default=1, ge=1, description="copies of each shot in an epoch (1 in the paper)")


PAPER: Mapping[str, Any] = MappingProxyType(
    {}
)  # the defaults; its rate of 5e-5 at 7B is replaced by the grid's
OWN: Mapping[str, Any] = MappingProxyType({"method": "robust", "shared_r": 8, "router_start": "scores"})
