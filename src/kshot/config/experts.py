"""Which adapters are scored, and become experts."""

from typing import Literal

from pydantic import Field

from kshot.config.section import Section
from kshot.endpoint import CONCURRENCY, TIMEOUT_S

MOST_SCORED = 64  # adapters: at 135M with 16 shots a quarter of an hour on one core, without the answers


class EndpointConfig(Section):
    """Where adapters are scored that a server holds, such as vLLM with LoRA."""

    url: str = Field(description="such as http://localhost:8000/v1")
    api_key_env: str | None = Field(
        default=None, description="environment variable with the key; OPENAI_API_KEY, if set, where absent"
    )
    names: dict[str, str] = Field(
        default={}, description="adapter: what it is called there, where that is not prefix and name"
    )
    prefix: str = Field(default="", description="what stands before every adapter's name there")
    concurrency: int = Field(default=CONCURRENCY, ge=1, description="requests under way at once")
    requests_per_minute: float | None = Field(default=None, gt=0, description="no limit where absent")
    timeout_s: float = Field(default=TIMEOUT_S, gt=0, description="of a request")


class ExpertsConfig(Section):
    """Which adapters become experts."""

    num_candidates: int = Field(
        default=8, ge=1, description="best adapters of the ranking, that groups are formed from (paper)"
    )
    num_experts: int = Field(
        default=4, ge=1, description="adapters of the chosen group (paper; N = 6 and 8 were no better)"
    )
    method: Literal["paper", "balanced", "robust"] = Field(
        default="paper",
        description="the published sum of ranks; quality and similarity each put on [0, 1]; or losses shot "
        "by shot, which neither one bad shot nor, where there are choices, the format of answers can rule",
    )
    similarity: Literal["delta", "paper", "fingerprint"] = Field(
        default="delta",
        description="cosine of weight changes; of A and B apart as published (changes under (RA, B/R)); or "
        "an estimate of the first to 0.016, for banks of thousands",
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="adapter names or patterns never chosen, such as the task's own"
    )
    screen: int | None = Field(
        default=None,
        ge=1,
        description="adapters that are scored on all shots, the last of halving; where absent, all of up to "
        "64, else 64",
    )
    halving_shots: int = Field(
        default=1,
        ge=1,
        description="shots of the first round, after which shots double and adapters halve; a bank with more "
        "adapters than it takes is ordered by slope and curvature of the loss first; no rounds if more than "
        "half of the shots",
    )
    halving_factor: int = Field(default=2, ge=2, description="in place of doubling and halving")
    screen_draws: int = Field(
        default=8,
        ge=0,
        description="draws of the curvature, each as dear as the slope; 0 orders by the slope alone, which "
        "says little (docs/log.md)",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="of a batch of scoring; a quarter of the base model, at least 1,024, where absent",
    )
    endpoint: EndpointConfig | None = Field(
        default=None, description="score through a server, which holds the adapters, instead of here"
    )

    def num_scored(self, num_adapters: int) -> int:
        """Return how many adapters of a bank are scored; a server scores all unless `screen` says less."""
        unless_said = num_adapters if self.endpoint else MOST_SCORED
        return min(num_adapters, self.screen or unless_said)
