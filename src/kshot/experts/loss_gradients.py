"""The gradient of the shots' loss with respect to the weights of a frozen base, from one backward pass.

Shapes: B rows   L label tokens   D inputs of a module   O its outputs   N tokens of a pass   V vocabulary
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kshot.batching import label_logits, length_batches, pad_left
from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.mixture.expert import linear_shape
from kshot.prompts import TokenisedExample

TOKENS_PER_BATCH = 2048  # padded, of a backward pass: its activations take 2 GB at 135M in float32


@dataclass(frozen=True, slots=True)
class LossGradients:
    """The gradient of the mean NLL of the shots with respect to the base's weights.

    Attributes:
        loss: Mean over the shots of the mean NLL of a target token, in nats.
        by_module: (O, D) of each linear module, float32, on the CPU: the memory of their weights.
    """

    loss: float
    by_module: dict[str, Tensor]


def loss_gradients(
    lm: LanguageModel,
    rows: Sequence[TokenisedExample],
    modules: Iterable[str],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> LossGradients:
    """Run the base forward and backward over the shots once.

    The base's weights need no gradient and may be quantised: G is the sum over tokens of (gradient of the
    module's output) x (its input), which hooks collect.

    Args:
        lm: The base model, without adapters.
        rows: The K shots, as prompt and target.
        modules: Names of the linear modules that adapters change.
        tokens_per_batch: Padded tokens of one pass.

    Raises:
        ConfigError: No shots or modules, a module is not linear, or the loss or a gradient is not finite.
    """
    if not rows:
        raise ConfigError("expected at least 1 shot, got none")
    total = 0.0
    with _collecting(lm.model, sorted(set(modules))) as gradients, _input_gradients(lm.model):
        for indices in length_batches([len(row) for row in rows], tokens_per_batch):
            batch = pad_left([rows[index] for index in indices], lm.pad_id, lm.device)
            logits_LV = label_logits(lm.model, batch)
            nll_L = cross_entropy(logits_LV.float(), batch.targets_L, reduction="none")
            counts_B = (batch.labels != -100).sum(dim=1)
            weight_L = (1 / counts_B.double()).repeat_interleave(counts_B) / len(rows)
            loss = (nll_L * weight_L.to(nll_L)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
    if not math.isfinite(total) or not all(torch.isfinite(G_OD).all() for G_OD in gradients.values()):
        dtype = str(next(lm.model.parameters()).dtype).removeprefix("torch.")
        raise ConfigError(
            f"expected a finite loss of the base on the shots and finite gradients, got {total:g} or "
            f"infinite gradients in {dtype}: set dtype to float32 or bfloat16"
        )
    return LossGradients(total, gradients)


@contextmanager
def _collecting(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Sum, for each named module, (gradient of its output) x (its input) over the tokens of all passes."""
    modules = dict(model.named_modules())
    strange = [name for name in names if name not in modules or linear_shape(modules[name]) is None]
    if strange or not names:
        raise ConfigError(
            f"expected names of linear modules of the base, got {strange[0] if strange else 'none'}"
        )
    gradients: dict[str, Tensor] = {}

    def follow(name: str) -> Any:
        def after_forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x_ND = inputs[0].detach().flatten(end_dim=-2)

            def after_backward(grad_output: Tensor) -> None:
                G_OD = (grad_output.flatten(end_dim=-2).float().T @ x_ND.float()).cpu()
                gradients[name] = gradients[name] + G_OD if name in gradients else G_OD

            output.register_hook(after_backward)  # type: ignore[no-untyped-call]

        return after_forward

    handles = [modules[name].register_forward_hook(follow(name)) for name in names]
    try:
        yield gradients
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
