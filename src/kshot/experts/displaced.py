"""A base model whose weights are moved by a low-rank change while gradients are taken."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from kshot.mixture import LoraExpert, LoraFactors, check_fits

USUAL = 10.0  # times the median size: an adapter beyond is broken, and would be all of the mean


def usual_size(experts: Sequence[LoraExpert]) -> list[LoraExpert]:
    """Return the adapters whose weight change is not beyond `USUAL` times the median size."""
    sizes = [_size(expert) for expert in experts]
    bound = USUAL * median(sizes) if sizes else 0.0
    return [expert for expert, size in zip(experts, sizes, strict=True) if size <= bound < math.inf]


def _size(expert: LoraExpert) -> float:
    """Frobenius norm of the weight change, through the factors."""
    squared = 0.0
    for one in expert.factors.values():
        A_rI, B_Or = one.A_rI.double(), one.B_Or.double() * one.scaling
        squared += float(((B_Or.T @ B_Or) * (A_rI @ A_rI.T)).sum())
    return math.sqrt(max(squared, 0.0))


def mean_change(experts: Sequence[LoraExpert], share: float) -> LoraExpert:
    """Return a share of the mean of several weight changes, as one adapter of their ranks together.

    Args:
        experts: One or more; a module that an expert lacks counts as no change.
        share: Of the mean.
    """
    factors = {}
    for module in sorted({module for expert in experts for module in expert.factors}):
        own = [expert.factors[module] for expert in experts if module in expert.factors]
        A_RD = torch.cat([one.A_rI.float() for one in own])
        B_OR = torch.cat([one.B_Or.float() * one.scaling for one in own], dim=1)
        factors[module] = LoraFactors(A_RD, B_OR, share / len(experts))
    return LoraExpert("mean", None, factors)


@contextmanager
def displaced(model: nn.Module, change: LoraExpert) -> Iterator[None]:
    """Add a change to a model for the length of the block; gradients flow through it, weights stay.

    Raises:
        AdapterError: The change does not fit the model.
    """
    check_fits(change, model)
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(_Adding(factors)) for name, factors in change.factors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Adding:
    """A forward hook that adds `s B A x` to the output of one module."""

    def __init__(self, factors: LoraFactors) -> None:
        self.A_RD = factors.A_rI.float()
        self.B_OR = factors.B_Or.float() * factors.scaling

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], y_BTO: Tensor) -> Tensor:
        x_BTD = inputs[0]
        A_RD, B_OR = self.A_RD.to(x_BTD.device), self.B_OR.to(x_BTD.device)
        delta_BTO: Tensor = x_BTD.float() @ A_RD.T @ B_OR.T
        return (y_BTO + delta_BTO).to(y_BTO.dtype)
