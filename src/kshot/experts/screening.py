"""Order a huge bank by what its adapters would do to the loss on the shots, to first order.

One backward pass of the base over the shots gives G = dL/dW of every module. An adapter moves W by s B A, so
the loss moves by about Σ over modules of <G, s B A> = Σ s sum((Bᵀ G) ∘ A), from the factors alone. Exact
for small steps only: use it to order the bank, and score the best few exactly.

Shapes: B rows   L label tokens   D inputs of a module   O its outputs   M adapters of a block   R their ranks
        together   N tokens of a pass
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kshot.batching import label_logits, length_batches, pad_left
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert
from kshot.mixture.expert import linear_shape
from kshot.prompts import form_of

TOKENS_PER_BATCH = 2048  # padded, of a backward pass: its activations take 2 GB at 135M in float32
ADAPTERS_AT_ONCE = 64  # their ranks together make a matrix product worth its overhead: 64 x 16 = 1,024 rows


@dataclass(frozen=True, slots=True)
class LossGradients:
    """The gradient of the mean NLL of the shots with respect to the base's weights.

    Attributes:
        loss: Mean over the shots of the mean NLL of a target token, in nats.
        by_module: (O, D) of each linear module, float32, on the CPU.
    """

    loss: float
    by_module: dict[str, Tensor]


def loss_gradients(
    lm: LanguageModel,
    shots: Sequence[Example],
    modules: Iterable[str],
    *,
    scorer: str = "exact_match",
    listed: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> LossGradients:
    """Run the base forward and backward over the shots once.

    The base's weights need no gradient and may be quantised: G is the sum over tokens of (gradient of the
    module's output) x (its input), which hooks collect.

    Args:
        lm: The base model, without adapters.
        shots: The K examples; rationales, where there are some, are part of the target.
        modules: Names of the linear modules that adapters change.
        scorer: As in `kshot.evaluate`: it decides how a shot is written.
        listed: As in `kshot.evaluate`.
        tokens_per_batch: Padded tokens of one pass.

    Raises:
        ConfigError: No shots or modules, or a module is not linear.
    """
    if not shots:
        raise ConfigError("expected at least 1 shot, got none")
    form = form_of(scorer, listed=listed)
    rows = [lm.template.encode_example(shot, form, rationale=True) for shot in shots]
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
    return LossGradients(total, gradients)


@torch.no_grad()
def first_order_changes(
    gradients: LossGradients, experts: Iterable[LoraExpert], *, at_once: int = ADAPTERS_AT_ONCE
) -> dict[str, float]:
    """Return by how much each adapter would change the loss, to first order, in nats; less is better.

    Args:
        gradients: Of the base on the shots.
        experts: Read one block at a time, so that a bank of any size streams through.
        at_once: Adapters of a block.

    Raises:
        AdapterError: An adapter has a module without a gradient, or of another shape.
    """
    changes: dict[str, float] = {}
    waiting = iter(experts)
    while block := list(islice(waiting, at_once)):
        totals_M = torch.zeros(len(block), dtype=torch.float64)
        for module in sorted({module for expert in block for module in expert.factors}):
            members = [place for place, expert in enumerate(block) if module in expert.factors]
            factors = [block[place].factors[module] for place in members]
            G_OD = _gradient_for(gradients, module, block[members[0]])
            A_RD = torch.cat([factor.A_rI.float() for factor in factors])
            B_RO = torch.cat([factor.B_Or.float().T * factor.scaling for factor in factors])
            if A_RD.shape[1] != G_OD.shape[1] or B_RO.shape[1] != G_OD.shape[0]:
                raise AdapterError(
                    f"{module}: expected adapters of shape {tuple(G_OD.shape)}, got one of another base "
                    f"between {block[members[0]].name!r} and {block[members[-1]].name!r}: verify the bank"
                )
            terms_R = ((B_RO @ G_OD) * A_RD).sum(dim=1)
            sizes = torch.tensor([factor.r for factor in factors])
            owner_R = torch.tensor(members).repeat_interleave(sizes)
            totals_M.index_add_(0, owner_R, terms_R.double())
        changes |= {expert.name: float(total) for expert, total in zip(block, totals_M, strict=True)}
    return changes


def _gradient_for(gradients: LossGradients, module: str, expert: LoraExpert) -> Tensor:
    if module not in gradients.by_module:
        raise AdapterError(
            f"expected adapters of the {len(gradients.by_module)} modules that gradients were taken of, got "
            f"{module} in {expert.name!r}: name all modules in loss_gradients"
        )
    return gradients.by_module[module]


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
