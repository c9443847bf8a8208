"""Gates that differ by row: many experts, or many adapters to compare, in one batch."""

import torch
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture.model import mixture_config, mixture_layers


def set_row_gates(model: nn.Module, gates_BN: torch.Tensor, adapter_name: str = "default") -> None:
    """Let each row of the next batches use gates of its own, in place of the fixed ones.

    With one-hot rows, row b runs as if expert e(b) alone were loaded: a bank is compared in a few passes.

    Args:
        model: A mixture with `fixed_gates`.
        gates_BN: (B, N), one gate for each row and expert; B must be the next batch's.
        adapter_name: Of the mixture.

    Raises:
        ConfigError: The mixture is routed, or N is not its number of experts.
    """
    config = mixture_config(model, adapter_name)
    num_experts = len(config.expert_names)
    if config.fixed_gates is None:
        raise ConfigError("expected a mixture with fixed_gates, got a routed one: build it with fixed_gates")
    if gates_BN.ndim != 2 or gates_BN.shape[1] != num_experts:
        raise ConfigError(f"expected gates of shape (rows, {num_experts}), got {tuple(gates_BN.shape)}")
    for layer in mixture_layers(model, adapter_name).values():
        layer.mixture_gates[adapter_name] = gates_BN.unsqueeze(1).to(layer.mixture_spread[adapter_name])
