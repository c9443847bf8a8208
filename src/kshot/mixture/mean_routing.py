"""A routed mixture with constant gates in place of its router: the mean routing of some text, and its cost.

B batch   T tokens   E choices of the router   V vocabulary
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax, nll_loss

from kshot.errors import ConfigError
from kshot.mixture.model import mixture_config, mixture_layers
from kshot.mixture.routing import prompt_before
from kshot.mixture.statistics import collect_routing

ModelInputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ConstantGatesLoss:
    """What constant gates cost, in nats, over the tokens measured.

    Attributes:
        num_tokens: Predicted tokens: those with a label where labels were given, else all but the first.
        mixture_nll: Mean NLL of these tokens under the routed mixture.
        constant_nll: The same with constant gates.
        kl: Mean KL divergence from the mixture's predictions to those with constant gates.
        same_top: Share of tokens where both hold the same token likeliest.
    """

    num_tokens: int
    mixture_nll: float
    constant_nll: float
    kl: float
    same_top: float

    def __str__(self) -> str:
        return (
            f"NLL {self.mixture_nll:.4f} -> {self.constant_nll:.4f} nats a token, KL {self.kl:.4f}, "
            f"same likeliest token {self.same_top:.1%}, over {self.num_tokens} tokens"
        )


@torch.no_grad()
def mean_gates(
    model: nn.Module, batches: Iterable[ModelInputs], adapter_name: str = "default"
) -> dict[str, list[float]]:
    """Return, for each module, the mean gate of each choice over the tokens of some text.

    Args:
        model: Holds a routed mixture, which is active; run in evaluation mode.
        batches: What the model's forward takes. Padding, as `attention_mask` says, is not counted; a
            sequence-level router reads what comes before the first of the `labels`, if there are any.
        adapter_name: Which mixture.

    Raises:
        ConfigError: No batches; the mixture is not there or not active.
    """
    with _evaluating(model, adapter_name), collect_routing(model, adapter_name) as statistics:
        for batch in batches:
            _run(model, batch)
    if not statistics.modules:
        raise ConfigError("expected batches to take the mean routing over, got none")
    return {module: routing.mean_gates for module, routing in statistics.modules.items()}


@contextmanager
def constant_gates(
    model: nn.Module, gates: Mapping[str, Sequence[float]], adapter_name: str = "default"
) -> Iterator[None]:
    """Let each module use constant gates in place of its own, for the length of the block.

    Raises:
        ConfigError: The mixture is not there, or `gates` are not one a choice for each of its modules.
    """
    num_choices = mixture_config(model, adapter_name).num_choices
    layers = mixture_layers(model, adapter_name)
    wrong = sorted(set(layers) ^ set(gates)) + [name for name in gates if len(gates[name]) != num_choices]
    if wrong:
        raise ConfigError(
            f"expected {num_choices} gates for each of the {len(layers)} modules of the mixture, got others "
            f"for {wrong[0]}: take them from mean_gates"
        )
    before = {
        module: layer.mixture_gates[adapter_name]
        for module, layer in layers.items()
        if adapter_name in layer.mixture_gates
    }
    for module, layer in layers.items():
        gates_E = torch.tensor([float(gate) for gate in gates[module]], dtype=torch.float64)
        layer.mixture_gates[adapter_name] = gates_E.to(layer.mixture_spread[adapter_name])
    try:
        yield
    finally:
        for module, layer in layers.items():
            layer.mixture_gates.pop(adapter_name)  # type: ignore[no-untyped-call]
            if module in before:
                layer.mixture_gates[adapter_name] = before[module]


@torch.no_grad()
def constant_gates_loss(
    model: nn.Module,
    gates: Mapping[str, Sequence[float]],
    batches: Iterable[ModelInputs],
    adapter_name: str = "default",
) -> ConstantGatesLoss:
    """Measure what is lost when constant gates replace the router.

    Args:
        model: Holds a routed mixture, which is active; run in evaluation mode.
        gates: By module.
        batches: What the model's forward takes, on text that the gates were not taken from where possible;
            with `labels`, the tokens they name are measured.
        adapter_name: Which mixture.

    Raises:
        ConfigError: No tokens to predict; wrong gates; the mixture is not there or not active.
    """
    nll, constant_nll, kl, same, count = 0.0, 0.0, 0.0, 0, 0
    with _evaluating(model, adapter_name):
        for batch in batches:
            targets_M, measured_BT = _targets(batch)
            logp_MV = _log_probabilities(model, batch, measured_BT)
            with constant_gates(model, gates, adapter_name):
                constant_MV = _log_probabilities(model, batch, measured_BT)
            nll += float(nll_loss(logp_MV, targets_M, reduction="sum"))
            constant_nll += float(nll_loss(constant_MV, targets_M, reduction="sum"))
            kl += float(kl_div(constant_MV, logp_MV, log_target=True, reduction="sum"))
            same += int((logp_MV.argmax(dim=-1) == constant_MV.argmax(dim=-1)).sum())
            count += len(targets_M)
    if not count:
        raise ConfigError("expected batches with tokens to predict, got none")
    return ConstantGatesLoss(count, nll / count, constant_nll / count, max(kl / count, 0.0), same / count)


def _log_probabilities(model: nn.Module, batch: ModelInputs, measured_BT: torch.Tensor) -> torch.Tensor:
    logits_MV = _run(model, batch).logits[:, :-1][measured_BT]
    return log_softmax(logits_MV.to(torch.promote_types(logits_MV.dtype, torch.float32)), dim=-1)


def _targets(batch: ModelInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(M,) tokens to predict, and where, (B, T - 1), the logits that predict them are."""
    labels_BT = batch.get("labels")
    if labels_BT is None:
        labels_BT = batch.get("input_ids")
        if labels_BT is None:
            raise ConfigError(f"expected batches with input_ids or labels, got {sorted(batch)}")
        mask_BT = batch.get("attention_mask")
        if mask_BT is not None:
            labels_BT = labels_BT.masked_fill(mask_BT == 0, -100)
            labels_BT[:, 1:][mask_BT[:, :-1] == 0] = -100  # nothing real predicts a row's first token
    measured_BT = labels_BT[:, 1:] != -100
    return labels_BT[:, 1:][measured_BT], measured_BT


def _run(model: nn.Module, batch: ModelInputs) -> Any:
    """Run the model without the loss of its own; what labels say of the prompt is said to its routers."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels_BT = batch.get("labels")
    tell: Any = getattr(model, "route_by_prompt", None)
    if labels_BT is None or tell is None:
        return model(**inputs)
    with tell(prompt_before(labels_BT, batch.get("attention_mask"))):
        return model(**inputs)


@contextmanager
def _evaluating(model: nn.Module, adapter_name: str) -> Iterator[None]:
    mixture_config(model, adapter_name)
    layers = mixture_layers(model, adapter_name).values()
    if any(layer.disable_adapters or adapter_name not in layer.active_adapters for layer in layers):
        raise ConfigError(
            f"expected the mixture {adapter_name!r} to be active, got another or none: call "
            "model.set_adapter first"
        )
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before
