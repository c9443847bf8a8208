"""The settings of a mixture: all that is needed to rebuild it beside its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture.card import write_card
from kshot.mixture.expert import ExpertOrigin
from kshot.mixture.module_groups import ModuleGroup, check_groups
from kshot.mixture.number_checks import are_finite, is_whole
from kshot.mixture.router_settings import (
    DEFAULT_INIT_STD,
    DEFAULT_TOP_K,
    Granularity,
    Scope,
    Start,
    check_fixed_gates,
    check_router,
)


class MixtureType(str, Enum):  # noqa: UP042 - PEFT prints its types as such an enum is printed
    """What PEFT calls the mixture; an enum like PEFT's own types, since transformers reads their `value`."""

    KSHOT_MIXTURE = "KSHOT_MIXTURE"


PEFT_TYPE = MixtureType.KSHOT_MIXTURE


@dataclass
class MixtureConfig(PeftConfig):
    """Settings of a mixture of N LoRA experts, `peft_type="KSHOT_MIXTURE"`.

    At each module of `module_groups`, on its input x: `y = W x + sum over the top_k of g_e s_e B_e A_e x`,
    with `g = softmax(router logits of the top_k / router_temperature)`. Modules follow from the groups, not
    from `target_modules`. Experts are stacked: their names are no state-dict keys.

    Attributes:
        expert_names: N names, all different, none of digits alone, in the order of the stack.
        module_groups: Rank and scaling of every expert in every module.
        expert_origins: Where each expert came from, for the model card; empty if nothing is known.
        top_k: Experts a token uses, in [1, N], or [1, N + 1] with `null_expert`; None: 2, or N if smaller.
            At 1 the gate is always 1, so that the task's loss does not train the router.
        router_scope: A router in every `module` (paper), or one a `layer` of the base: it sits in the layer's
            first module of the mixture, and the others of that layer use its gates.
        router_granularity: Gates for every `token` (paper), or one decision for a `sequence`, from the mean
            of the prompt: the tokens before the first label, or before the first that is generated.
        router_start: `random` (paper), or the experts' own `directions`, in closed form: each expert's row is
            the leading right singular vector of its B A there. A singular vector has no sign: the logits
            are then |R x|, as in Arrow (arXiv 2405.11157).
        router_prior: What a bias of the logits starts from, one number a choice, such as scores of the
            experts in nats; None is no bias (paper).
        router_temperature: > 0.
        router_init_std: Standard deviation of a random start, >= 0; 0 only if every expert is on.
        router_dropout: In training, the probability that a choice is hidden from a token, in [0, 1).
        null_expert: The router may also choose none: one more choice, which adds nothing.
        shared_r: Rank of a fresh LoRA that is always on; 0 for none.
        shared_alpha: Its scaling is `shared_alpha / shared_r`; None: `shared_r`, that is a scaling of 1.
        load_balancing: Coefficient of the load-balancing loss (see `router_loss`), >= 0; 0 is off, as in the
            paper.
        z_loss: Coefficient of the router z-loss (see `router_loss`), >= 0; 0 is off; 1e-3 in ST-MoE.
        fixed_gates: N constant gates instead of a router: 1/N each is the uniform mixture, one-hot a single
            expert. There is then no router parameter, and the mixture can be merged and exported exactly.
        seed: Of everything drawn here: router, shared LoRA, and experts that are not loaded.

    Raises:
        ConfigError: A setting is out of its range, or would have no effect.

    Reference: arXiv 2408.15915v2, section 3.4; whatever is not marked (paper) is an addition.
    """

    expert_names: list[str] = field(default_factory=list)
    module_groups: list[ModuleGroup] = field(default_factory=list)
    expert_origins: list[ExpertOrigin] = field(default_factory=list)
    top_k: int | None = None
    router_scope: Scope = "module"
    router_granularity: Granularity = "token"
    router_start: Start = "random"
    router_prior: list[float] | None = None
    router_temperature: float = 1.0
    router_init_std: float = DEFAULT_INIT_STD
    router_dropout: float = 0.0
    null_expert: bool = False
    shared_r: int = 0
    shared_alpha: float | None = None
    load_balancing: float = 0.0
    z_loss: float = 0.0
    fixed_gates: list[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE
        _check_experts(self)
        _check_shared(self)
        if self.fixed_gates is not None:
            check_fixed_gates(self)
        else:
            if self.top_k is None:
                self.top_k = min(DEFAULT_TOP_K, self.num_experts)
            check_router(self)
        self._sizes = {
            module: (group["ranks"], group["scalings"])
            for group in self.module_groups
            for module in group["modules"]
        }
        self._owners = {module: module for module in self._sizes}
        # PEFT asks for this name. It is not a field: it is neither saved nor accepted, as the groups decide.
        # For a head in it PEFT would save the whole embedding too, of which the mixture changes nothing.
        self.target_modules: Sequence[str] = [
            module for module in self._sizes if module.rpartition(".")[2] not in EMBEDDING_LAYER_NAMES
        ]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does, with a model card that names the experts, their origins and licences."""
        super().save_pretrained(save_directory, **kwargs)
        write_card(self, Path(save_directory))

    @property
    def num_experts(self) -> int:
        """N."""
        return len(self.expert_names)

    @property
    def num_choices(self) -> int:
        """What the router chooses from: the experts, and the null expert if there is one."""
        return self.num_experts + self.null_expert

    @property
    def module_names(self) -> tuple[str, ...]:
        """Every module the mixture sits in, by its name in the base model."""
        return tuple(self._sizes)

    @property
    def keeps_logits(self) -> bool:
        """Whether a training pass keeps the router's logits for `router_loss`."""
        return self.load_balancing > 0 or self.z_loss > 0

    def assign_routers(self, base_model: nn.Module) -> None:
        """Find the module that holds each module's router; to be called before layers are made.

        Under `router_scope="layer"` that is the first of its layer, in the order in which the base defines
        its modules.
        """
        if self.router_scope == "module" or self.fixed_gates is not None:
            return
        owners: dict[str, str] = {}
        for module, _ in base_model.named_modules():
            if module in self._sizes:
                self._owners[module] = owners.setdefault(layer_of(module), module)

    def router_owner(self, module: str) -> str:
        """Return the module whose router decides in `module`: itself, or the first of its layer."""
        return self._owners[module]

    def sizes(self, module: str) -> tuple[list[int], list[float]]:
        """Ranks and scalings of the N experts in `module`."""
        return self._sizes[module]

    def covers(self, module: str) -> bool:
        """Whether the mixture sits in `module`."""
        return module in self._sizes


def layer_of(module: str) -> str:
    """Return the layer that a module lies in: `model.layers.3` of `model.layers.3.mlp.up_proj`.

    A module outside numbered layers, such as `lm_head`, is a layer of its own.
    """
    parts = module.split(".")
    numbered = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: numbered + 1])


def _check_experts(config: MixtureConfig) -> None:
    names, groups = config.expert_names, config.module_groups
    if not names or not groups:
        raise ConfigError(
            f"a mixture needs at least 1 expert and 1 module, got {len(names)} and {len(groups)}: "
            "use build_mixture, or fill expert_names and module_groups"
        )
    if len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"expert_names must be different and not empty, got {names}: rename the experts")
    if any(name.isdigit() for name in names):
        raise ConfigError(f"expert_names must not be digits alone, got {names}: rename the experts")
    if config.expert_origins and len(config.expert_origins) != len(names):
        raise ConfigError(
            f"expert_origins must be empty or one an expert, got {len(config.expert_origins)} of {len(names)}"
        )
    check_groups(groups, len(names))


def _check_shared(config: MixtureConfig) -> None:
    if not is_whole(config.shared_r) or config.shared_r < 0:
        raise ConfigError(f"shared_r must be >= 0, got {config.shared_r}: 0 is no shared expert")
    if config.shared_alpha is None:
        return
    if config.shared_r == 0:
        raise ConfigError(
            f"shared_alpha must be None without a shared expert, got {config.shared_alpha}: set shared_r"
        )
    if not (are_finite([config.shared_alpha]) and config.shared_alpha > 0):
        raise ConfigError(f"shared_alpha must be > 0, got {config.shared_alpha}: None is a scaling of 1")
