"""A routed mixture with constant gates in place of its router: the mean routing of some text, and its cost.

B batch   T tokens   E choices of the router   V vocabulary
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kshot.errors import ConfigError
from kshot.mixture.model import mixture_layers
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
        model: Holds a routed mixture; run in evaluation mode.
        batches: What the model's forward takes; padding, as `attention_mask` says, is not counted.
        adapter_name: Which mixture.

    Raises:
        ConfigError: No batches.
    """
    with _evaluating(model), collect_routing(model, adapter_name) as statistics:
        for batch in batches:
            model(**{name: value for name, value in batch.items() if name != "labels"})
    if not statistics.modules:
        raise ConfigError("expected batches to take the mean routing over, got none")
    return {module: routing.mean_gates for module, routing in statistics.modules.items()}


@contextmanager
def constant_gates(
    model: nn.Module, gates: Mapping[str, Sequence[float]], adapter_name: str = "default"
) -> Iterator[None]:
    """Let each module use constant gates in place of the router's, for the length of the block.

    Raises:
        ConfigError: A module of the mixture has no gates in `gates`.
    """
    layers = mixture_layers(model, adapter_name)
    if set(layers) != set(gates):
        raise ConfigError(
            f"expected gates for the {len(layers)} modules of the mixture, got {len(gates)}: use mean_gates"
        )
    for module, layer in layers.items():
        spread_ER = layer.mixture_spread[adapter_name]
        layer.mixture_gates[adapter_name] = torch.tensor(list(gates[module])).to(spread_ER)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.mixture_gates[adapter_name]


@torch.no_grad()
def constant_gates_loss(
    model: nn.Module,
    gates: Mapping[str, Sequence[float]],
    batches: Iterable[ModelInputs],
    adapter_name: str = "default",
) -> ConstantGatesLoss:
    """Measure what is lost when constant gates replace the router.

    Args:
        model: Holds a routed mixture; run in evaluation mode.
        gates: By module.
        batches: What the model's forward takes, on text that the gates were not taken from where possible;
            with `labels`, the tokens they name are measured.
        adapter_name: Which mixture.
    """
    nll, constant_nll, kl, same, count = 0.0, 0.0, 0.0, 0, 0
    with _evaluating(model):
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            targets_M, measured_BT = _targets(batch)
            logp_MV = log_softmax(model(**inputs).logits[:, :-1][measured_BT].float(), dim=-1)
            with constant_gates(model, gates, adapter_name):
                constant_MV = log_softmax(model(**inputs).logits[:, :-1][measured_BT].float(), dim=-1)
            nll += float(cross_entropy(logp_MV, targets_M, reduction="sum"))
            constant_nll += float(cross_entropy(constant_MV, targets_M, reduction="sum"))
            kl += float(kl_div(constant_MV, logp_MV, log_target=True, reduction="sum"))
            same += int((logp_MV.argmax(dim=-1) == constant_MV.argmax(dim=-1)).sum())
            count += len(targets_M)
    if not count:
        raise ConfigError("expected batches with tokens to predict, got none")
    return ConstantGatesLoss(count, nll / count, constant_nll / count, max(kl / count, 0.0), same / count)


def _targets(batch: ModelInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """(M,) tokens to predict, and where, (B, T - 1), the logits that predict them are."""
    labels_BT = batch.get("labels")
    if labels_BT is None:
        labels_BT = batch["input_ids"]
        mask_BT = batch.get("attention_mask")
        if mask_BT is not None:
            labels_BT = labels_BT.masked_fill(mask_BT == 0, -100)
            labels_BT[:, 1:][mask_BT[:, :-1] == 0] = -100  # nothing real predicts a row's first token
    measured_BT = labels_BT[:, 1:] != -100
    return labels_BT[:, 1:][measured_BT], measured_BT


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
