"""How the experts are put together."""

from typing import Literal

from pydantic import Field

from kshot.config.section import Section


class MixtureSettings(Section):
    """How the experts are put together."""

    top_k: int = Field(default=2, ge=1, description="experts per token (paper)")
    shared_r: int = Field(
        default=0, ge=0, description="rank of a fresh LoRA that is always on; 0 for none (paper)"
    )
    null_expert: bool = Field(default=False, description="let the router choose no expert")
    router_scope: Literal["module", "layer"] = Field(
        default="module", description="a router in every module (paper), or one a layer"
    )
    router_granularity: Literal["token", "sequence"] = Field(
        default="token", description="decide for every token (paper), or once for a prompt"
    )
    router_start: Literal["random", "directions", "scores"] = Field(
        default="random",
        description="random (paper), by the experts' directions, or biased by their scores on the shots",
    )
    router_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="in training, how often a choice is hidden (0 in the paper)"
    )
    load_balancing: float = Field(
        default=0.0, ge=0, description="weight of the load-balancing loss (0 in the paper)"
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="weight of the router z-loss (0 in the paper; 1e-3 in ST-MoE)"
    )
