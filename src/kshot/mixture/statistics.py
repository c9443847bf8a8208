"""Which experts the router uses: by module, by layer, by token.

B batch   T tokens   E choices of the router, the null expert last if there is one
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from kshot.mixture.config import layer_of
from kshot.mixture.model import mixture_config, mixture_layers, watching

NULL_EXPERT = "(none)"


@dataclass(slots=True)
class ModuleRouting:
    """What a module's gates added up to; tensors stay on their device until they are read.

    Attributes:
        mass_E: Sum of the gates over tokens.
        entropy: Sum over tokens of the entropy of their gates, in nats.
        num_tokens: Tokens counted; padding is not.
        tokens: The gates themselves, (B, T, E) each pass, 0 at padding, if they were to be kept.
    """

    mass_E: torch.Tensor  # noqa: N815 - the suffix is its shape
    entropy: torch.Tensor
    num_tokens: torch.Tensor
    tokens: list[torch.Tensor] = field(default_factory=list)

    @property
    def mean_gates(self) -> list[float]:
        """Mean gate of each choice over the tokens."""
        return [float(mass / self.num_tokens) for mass in self.mass_E]

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of a token's gates, in nats: 0 is one expert, log K is K experts alike."""
        return float(self.entropy / self.num_tokens)


@dataclass(slots=True)
class RoutingStatistics:
    """Expert use, collected over the passes of a `collect_routing` block.

    Attributes:
        choices: Names of the experts, then the null expert if there is one.
        modules: By module. Modules that use another's gates are counted too, with those gates.
        keeps_tokens: Whether `ModuleRouting.tokens` is filled.
    """

    choices: tuple[str, ...]
    modules: dict[str, ModuleRouting] = field(default_factory=dict)
    keeps_tokens: bool = False

    def by_layer(self) -> dict[str, dict[str, float]]:
        """Mean gate of each choice in each layer of the base, over its modules and the tokens."""
        layers: dict[str, list[ModuleRouting]] = {}
        for module, routing in self.modules.items():
            layers.setdefault(layer_of(module), []).append(routing)
        return {layer: self._named(_mean(found)) for layer, found in layers.items()}

    def overall(self) -> dict[str, float]:
        """Mean gate of each choice over modules and tokens."""
        return self._named(_mean(list(self.modules.values())))

    def _named(self, gates: list[float]) -> dict[str, float]:
        return dict(zip(self.choices, gates, strict=True))

    def record(self, module: str, gates_BTE: torch.Tensor, mask_BT: torch.Tensor | None) -> None:
        """Add a pass."""
        gates_BTE = gates_BTE.detach()
        if mask_BT is not None:
            gates_BTE = gates_BTE.masked_fill(~mask_BT.unsqueeze(-1), 0)
        entropy = torch.special.entr(gates_BTE).sum()
        mass_E = gates_BTE.flatten(end_dim=-2).sum(dim=0)
        num_tokens = mass_E.new_tensor(gates_BTE[..., 0].numel()) if mask_BT is None else mask_BT.sum()
        tokens = [gates_BTE] if self.keeps_tokens else []
        seen = self.modules.get(module)
        if seen is None:
            self.modules[module] = ModuleRouting(mass_E, entropy, num_tokens, tokens)
            return
        seen.mass_E = seen.mass_E + mass_E
        seen.entropy = seen.entropy + entropy
        seen.num_tokens = seen.num_tokens + num_tokens
        seen.tokens += tokens


@contextmanager
def collect_routing(
    model: nn.Module, adapter_name: str = "default", *, keep_tokens: bool = False
) -> Iterator[RoutingStatistics]:
    """Collect how a routed mixture spends its gates, in every pass of the block, training or not.

    The cost is three sums over the gates in each module; nothing is copied to the host until it is read. A
    backward in the block counts its tokens again under gradient checkpointing, which leaves the means alone.

    Args:
        model: Holds the mixture.
        adapter_name: Which one.
        keep_tokens: Also keep every token's gates: tokens x E numbers a module.

    Raises:
        ConfigError: No mixture of that name; an encoder-decoder; in a pass, a mask that does not say where
            padding is.
    """
    config = mixture_config(model, adapter_name)
    null = (NULL_EXPERT,) if config.null_expert else ()
    statistics = RoutingStatistics((*config.expert_names, *null), keeps_tokens=keep_tokens)

    def record(module: str, name: str, gates_BTE: torch.Tensor, mask_BT: torch.Tensor | None) -> None:
        if name == adapter_name:
            statistics.record(module, gates_BTE, mask_BT)

    layers = mixture_layers(model, adapter_name).values()
    with watching(model):
        for layer in layers:
            layer.recorders.append(record)
        try:
            yield statistics
        finally:
            for layer in layers:
                layer.recorders.remove(record)


def _mean(found: list[ModuleRouting]) -> list[float]:
    columns = zip(*(routing.mean_gates for routing in found), strict=True)
    return [sum(column) / len(found) for column in columns]
