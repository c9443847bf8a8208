"""Adapters that differ by row: one base model, many adapters, each row of a batch under its own.

Weights are neither merged nor stacked into one wide LoRA. A module's input x, rows in order of their adapter,
is seen as (M, N, D), and two batched matmuls are added to the base's own output:

    y + (x_MND @ A_MDr) @ B_MrO

A row pays for the rank of its own adapter, whatever the number of adapters beside it. Where all adapters
have the same number of rows, one after another, nothing is copied. Otherwise rows are gathered into M equal
shares, filled up with copies of row 0 whose results are left out.

Shapes: B rows   T tokens   D inputs   O outputs   M adapters of the batch   S rows of the adapter with most
        N tokens of a share, S * T   r largest rank of a module; smaller ones are filled up with zeros
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, check_fits


@dataclass(frozen=True, slots=True)
class _Shares:
    """How the rows of a batch fall to adapters.

    Attributes:
        first: First adapter of the batch.
        stop: One past the last.
        num_rows: B.
        rows: (M, S), those of each share; None where the batch lies in this order already.
        places: (B,), of each row, counted through the shares; None likewise.
    """

    first: int
    stop: int
    num_rows: int
    rows: Tensor | None = None
    places: Tensor | None = None


class RowExperts:
    """Says which adapter each row of the next batches runs under.

    Args:
        num_experts: How many can be named.
        device: Of the model.
    """

    def __init__(self, num_experts: int, device: torch.device) -> None:
        self.num_experts = num_experts
        self._device = device
        self._owners: tuple[int, ...] = ()
        self._shares: _Shares | None = None

    def use(self, owners: Sequence[int]) -> None:
        """Set the adapter of each row, by its index; it holds until the next call.

        Raises:
            ConfigError: There is no row, or no such adapter.
        """
        if not owners or not 0 <= min(owners) <= max(owners) < self.num_experts:
            raise ConfigError(
                f"expected an adapter in [0, {self.num_experts}) for each row, got {list(owners)}"
            )
        if self._owners != tuple(owners):
            self._owners = tuple(owners)
            self._shares = _share_out(self._owners, self._device)

    def shares_of(self, x: Tensor, module: str) -> _Shares:
        """Return how the rows of a module's input fall to adapters.

        Raises:
            ConfigError: `use` was not called.
            AdapterError: The input has no row for each owner, as that of an expert in a sparse base.
        """
        shares = self._shares
        if shares is None:
            raise ConfigError("expected the adapters of the rows, got none: call use() before the model")
        alone = shares.stop - shares.first == 1
        if not alone and (x.ndim != 3 or len(x) != shares.num_rows):
            raise AdapterError(
                f"{module}: expected an input of shape ({shares.num_rows} rows, tokens, features), got "
                f"{tuple(x.shape)}, where rows cannot be told apart: run one adapter at a time"
            )
        return shares


@contextmanager
def row_experts(model: nn.Module, experts: Sequence[LoraExpert]) -> Iterator[RowExperts]:
    """Let rows run under adapters of their own for the length of the block.

    Hooks on the adapted modules do it; the model's weights and modules stay as they are.

    Args:
        model: A base model without adapters; no gradient reaches it.
        experts: LoRA adapters, whose ranks and modules may differ.

    Yields:
        What sets the adapters of the rows: `use` comes before the first forward pass.

    Raises:
        AdapterError: An adapter does not fit the model, or the model has adapters of its own.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise AdapterError("expected a base model without adapters, got some: call `unload()` first")
    for expert in experts:
        check_fits(expert, model)
    some = next(model.parameters())
    rows = RowExperts(len(experts), some.device)
    modules = dict(model.named_modules())
    handles = []
    try:
        for name in sorted({name for expert in experts for name in expert.factors}):
            A_MDr, B_MrO = _stack(experts, name, some.device, some.dtype)
            handles.append(modules[name].register_forward_hook(_Adding(rows, name, A_MDr, B_MrO)))
        yield rows
    finally:
        for handle in handles:
            handle.remove()


class _Adding:
    """A forward hook that adds each row's adapter to the output of one module."""

    def __init__(self, rows: RowExperts, module: str, A_MDr: Tensor, B_MrO: Tensor) -> None:
        self.rows = rows
        self.module = module
        self.A_MDr = A_MDr
        self.B_MrO = B_MrO

    @torch.no_grad()
    def __call__(self, _: nn.Module, inputs: tuple[Any, ...], y_BTO: Tensor) -> Tensor:
        x_BTD = inputs[0].to(self.A_MDr.dtype)
        shares = self.rows.shares_of(x_BTD, self.module)
        A_MDr, B_MrO = self.A_MDr[shares.first : shares.stop], self.B_MrO[shares.first : shares.stop]
        if shares.rows is not None:
            x_MND = x_BTD[shares.rows].flatten(1, 2)
            delta_MNO = torch.bmm(torch.bmm(x_MND, A_MDr), B_MrO)
            delta_BTO = delta_MNO.view(-1, *y_BTO.shape[1:])[shares.places]
            return (y_BTO + delta_BTO).to(y_BTO.dtype)
        y_MNO = y_BTO.reshape(len(A_MDr), -1, y_BTO.shape[-1])
        h_MNr = torch.bmm(x_BTD.reshape(len(A_MDr), -1, x_BTD.shape[-1]), A_MDr)
        if y_MNO.dtype == h_MNr.dtype:
            y_MNO.baddbmm_(h_MNr, B_MrO)  # in place: no new memory for the output
        else:
            y_MNO = torch.baddbmm(y_MNO.to(h_MNr.dtype), h_MNr, B_MrO).to(y_BTO.dtype)
        return y_MNO.view(y_BTO.shape)


def _share_out(owners: Sequence[int], device: torch.device) -> _Shares:
    first, stop = min(owners), max(owners) + 1
    size = max(Counter(owners).values())
    if list(owners) == [owner for owner in range(first, stop) for _ in range(size)]:
        return _Shares(first, stop, len(owners))
    shares: list[list[int]] = [[] for _ in range(first, stop)]
    places = []
    for row, owner in enumerate(owners):
        share = shares[owner - first]
        places.append((owner - first) * size + len(share))
        share.append(row)
    full = [share + [0] * (size - len(share)) for share in shares]
    rows_MS, place_B = torch.tensor(full, device=device), torch.tensor(places, device=device)
    return _Shares(first, stop, len(owners), rows_MS, place_B)


def _stack(
    experts: Sequence[LoraExpert], module: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return A (M, D, r) and B (M, r, O), scalings inside B, in float32 at least, as PEFT computes.

    They are zero where an expert lacks the module.
    """
    dtype = torch.promote_types(dtype if dtype.is_floating_point else torch.float32, torch.float32)
    found = {
        index: expert.factors[module] for index, expert in enumerate(experts) if module in expert.factors
    }
    some = next(iter(found.values()))
    r = max(factors.r for factors in found.values())
    A_MDr = torch.zeros(len(experts), some.A_rI.shape[1], r, dtype=dtype)
    B_MrO = torch.zeros(len(experts), r, some.B_Or.shape[0], dtype=dtype)
    for index, factors in found.items():
        A_MDr[index, :, : factors.r] = factors.A_rI.to(dtype).T
        B_MrO[index, : factors.r] = factors.B_Or.to(dtype).T * factors.scaling
    return A_MDr.to(device), B_MrO.to(device)
