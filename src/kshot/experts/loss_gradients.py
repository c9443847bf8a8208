"""Slope and curvature of the shots' loss in the weights of a frozen base, from a few backward passes.

Shapes: B rows   L label tokens   D inputs of a module   O its outputs   N tokens of a pass   V vocabulary
        S draws   P passes: the loss, then the draws
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kshot.batching import label_logits, length_batches, pad_left
from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.mixture.expert import linear_shape
from kshot.prompts import TokenisedExample

TOKENS_PER_BATCH = 1024  # padded, of a backward pass: its activations take 1 GB at 135M in float32


@dataclass(frozen=True, slots=True)
class LossGradients:
    """Gradients of the mean NLL of the shots, and of draws whose squares are its curvature.

    Attributes:
        loss: Mean over the shots of the mean NLL of a target token, in nats.
        by_module: (P, O, D) of each linear module, float32, on the CPU: P times the memory of their weights.
            The first is the gradient of the loss; each other is a draw.
    """

    loss: float
    by_module: dict[str, Tensor]


@dataclass
class _Collected:
    """Sums by module, (P, O, D), and which of them the backward pass under way adds to."""

    sums: dict[str, Tensor]
    place: int = 0


def loss_gradients(
    lm: LanguageModel,
    rows: Sequence[TokenisedExample],
    modules: Iterable[str],
    *,
    num_draws: int = 0,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> LossGradients:
    """Run the base forward once over the shots, and backward once and again for every draw.

    The base's weights need no gradient and may be quantised: G is the sum over tokens of (gradient of the
    module's output) x (its input), which hooks collect.

    A draw is the gradient of the NLL of targets that the model itself has drawn, each token by its own
    probabilities, a shot of n tokens weighing `1 / √(K n)`. Its mean is zero, and the mean square of its
    product with a weight change Δ is `Δᵀ F Δ`, F being the Fisher information: the curvature of the loss, as
    Gauss and Newton have it.

    Args:
        lm: The base model, without adapters.
        rows: The K shots, as prompt and target.
        modules: Names of the linear modules that adapters change.
        num_draws: S; the same each time.
        tokens_per_batch: Padded tokens of one pass.

    Raises:
        ConfigError: No shots or modules, a module is not linear, or the loss or a gradient is not finite.

    Reference: Kunstner et al. 2019, Limitations of the empirical Fisher approximation, for why targets are
    drawn and not those given.
    """
    if not rows:
        raise ConfigError("expected at least 1 shot, got none")
    loss, generator = 0.0, torch.Generator().manual_seed(0)
    with _collecting(lm.model, sorted(set(modules)), 1 + num_draws) as collected, _input_gradients(lm.model):
        for indices in length_batches([len(row) for row in rows], tokens_per_batch):
            batch = pad_left([rows[index] for index in indices], lm.pad_id, lm.device)
            logits_LV = label_logits(lm.model, batch).float()
            counts_B = (batch.labels != -100).sum(dim=1)
            weight_L = (1 / (len(rows) * counts_B.double())).repeat_interleave(counts_B).to(logits_LV)
            log_p_LV = logits_LV.detach().log_softmax(dim=1)
            loss -= float(log_p_LV.gather(1, batch.targets_L[:, None])[:, 0] @ weight_L)
            p_LV = log_p_LV.exp_()
            drawn = [(drawn_L, weight_L.sqrt()) for drawn_L in _draw(p_LV, num_draws, generator)]
            _backward(logits_LV, p_LV, [(batch.targets_L, weight_L), *drawn], collected)
    if not math.isfinite(loss) or not all(torch.isfinite(one).all() for one in collected.sums.values()):
        dtype = str(next(lm.model.parameters()).dtype).removeprefix("torch.")
        raise ConfigError(
            f"expected a finite loss of the base on the shots and finite gradients, got {loss:g} or "
            f"infinite gradients in {dtype}: set dtype to float32 or bfloat16"
        )
    return LossGradients(loss, collected.sums)


def _backward(
    logits_LV: Tensor, p_LV: Tensor, passes: Sequence[tuple[Tensor, Tensor]], collected: _Collected
) -> None:
    """Go back from weighted sums of NLLs, each of targets and weights (L,); one copy of them a pass."""
    for place, (targets_L, weights_L) in enumerate(passes):
        collected.place = place
        slope_LV = p_LV * weights_L[:, None]
        slope_LV.scatter_add_(1, targets_L[:, None], -weights_L[:, None])
        logits_LV.backward(slope_LV, retain_graph=place + 1 < len(passes))  # type: ignore[no-untyped-call]


def _draw(p_LV: Tensor, num_draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield targets, (L,) each, drawn on the CPU, so that every device draws from the same numbers."""
    if not num_draws or not torch.isfinite(p_LV).all():  # which the loss will show
        return
    drawn_LS = torch.multinomial(p_LV.cpu(), num_draws, replacement=True, generator=generator)
    yield from drawn_LS.T.to(p_LV.device)


@contextmanager
def _collecting(model: nn.Module, names: Sequence[str], num_passes: int) -> Iterator[_Collected]:
    """Sum, for each named module, (gradient of its output) x (its input) over the tokens of all passes."""
    modules = dict(model.named_modules())
    shapes = {name: linear_shape(modules[name]) if name in modules else None for name in names}
    strange = [name for name, shape in shapes.items() if shape is None]
    if strange or not names:
        raise ConfigError(
            f"expected names of linear modules of the base, got {strange[0] if strange else 'none'}"
        )
    collected = _Collected({name: torch.zeros(num_passes, *shape) for name, shape in shapes.items() if shape})

    def follow(name: str) -> Any:
        def after_forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x_ND = inputs[0].detach().flatten(end_dim=-2)

            def after_backward(grad_output: Tensor) -> None:
                G_OD = grad_output.flatten(end_dim=-2).float().T @ x_ND.float()
                collected.sums[name][collected.place] += G_OD.cpu()

            output.register_hook(after_backward)  # type: ignore[no-untyped-call]

        return after_forward

    handles = [modules[name].register_forward_hook(follow(name)) for name in names]
    try:
        yield collected
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _input_gradients(model: nn.Module) -> Iterator[None]:
    """Let gradients flow through a model whose weights are frozen, and give the weights none."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embedding = model.get_input_embeddings()  # type: ignore[operator]

    def require(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.requires_grad_()

    handle = embedding.register_forward_hook(require)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in trained:
            parameter.requires_grad_()
