"""Cosines of the weight changes that several adapters make to one module, exact and in float32.

n adapters   r rank   I inputs   O outputs   R stacked ranks   o outputs of a strip
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby

import numpy as np
import torch

from kshot.mixture import LoraFactors

TILE_RANKS = 1_024  # stacked ranks of a tile: its two products, 8 MB of float32, stay in the cache
STRIP_BYTES = 1 << 24  # of dense changes: outgrows no cache, and long enough for the product's inner loop


@dataclass(frozen=True, slots=True, eq=False)
class ModuleGram:
    """How one module's weight changes lie to each other.

    Attributes:
        cosines_nn: float64, symmetric, to about 1e-7; 0 beside a change of zero.
        norms_n: float64, |ΔW|.
        bounds_n: float64, |s| |A| |B|, which |ΔW| cannot exceed: far below it, it is rounding error.
    """

    cosines_nn: np.ndarray
    norms_n: np.ndarray
    bounds_n: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class _SameRank:
    """Adapters of one rank as `ΔW / |ΔW| = Cᵀ Q`, the rows of Q orthonormal."""

    places: list[int]
    Q_nrI: np.ndarray
    C_nrO: np.ndarray


def module_gram(factors: Sequence[LoraFactors], *, tile_ranks: int = TILE_RANKS) -> ModuleGram:
    """Compare the weight changes `s B A` of one module, two by two.

    Each is first written as `C Q` with `A = L Q`, `Q Qᵀ = 1` and `C = s B L`, in float64. |ΔW| is then |C|,
    no number of C or Q is large beside it, and the products that take the time are safe in float32 whatever
    basis (A, B) came in. They take the cheaper of two ways:

    - through the factors, `<ΔW1, ΔW2> = Σ (C1ᵀ C2 ∘ Q1 Q2ᵀ)`, `r² (I + O)` multiplications a pair;
    - through the changes themselves, formed in strips of a few outputs, `I O` multiplications a pair: cheaper
      where ranks are high for the size of the layer.

    Args:
        factors: Of the n adapters, all with the same inputs and outputs; any ranks, scalings and types.
        tile_ranks: Stacked ranks that are multiplied at once.
    """
    norms_n, bounds_n, groups = _canonical(factors)
    outputs, inputs = factors[0].B_Or.shape[0], factors[0].A_rI.shape[1]
    stacked = sum(len(group.places) * group.Q_nrI.shape[1] for group in groups)
    through_factors = stacked**2 * (inputs + outputs) < len(factors) ** 2 * inputs * outputs
    grouped_nn = _through_factors(groups, tile_ranks) if through_factors else _through_strips(groups)
    grouped_nn = (grouped_nn + grouped_nn.T) / 2  # sums over two axes differ in their last bits
    order = np.argsort([place for group in groups for place in group.places])
    return ModuleGram(grouped_nn[np.ix_(order, order)], norms_n, bounds_n)


def _canonical(factors: Sequence[LoraFactors]) -> tuple[np.ndarray, np.ndarray, list[_SameRank]]:
    norms_n, bounds_n = np.zeros(len(factors)), np.zeros(len(factors))
    places = sorted(range(len(factors)), key=lambda place: _rank(factors[place]))
    groups = []
    for rank, members in groupby(places, key=lambda place: _rank(factors[place])):
        group = list(members)
        outputs, inputs = factors[0].B_Or.shape[0], factors[0].A_rI.shape[1]
        Q_nrI = np.empty((len(group), rank, inputs), dtype=np.float32)
        C_nrO = np.empty((len(group), rank, outputs), dtype=np.float32)
        for row, place in enumerate(group):
            one = factors[place]
            A_rI, B_Or = _float64(one.A_rI), one.scaling * _float64(one.B_Or)
            Q_Ir, L_rr = np.linalg.qr(A_rI.T)
            C_rO = L_rr @ B_Or.T
            norms_n[place] = np.linalg.norm(C_rO)
            bounds_n[place] = np.linalg.norm(A_rI) * np.linalg.norm(B_Or)
            Q_nrI[row], C_nrO[row] = Q_Ir.T, C_rO / (norms_n[place] or 1.0)
        groups.append(_SameRank(group, Q_nrI, C_nrO))
    return norms_n, bounds_n, groups


def _rank(factors: LoraFactors) -> int:
    return min(factors.r, factors.A_rI.shape[1])


def _through_factors(groups: Sequence[_SameRank], tile_ranks: int) -> np.ndarray:
    """Multiply tiles of stacked factors, the upper half alone, and sum each pair's r x r block."""
    tiles: list[tuple[slice, int, np.ndarray, np.ndarray]] = []
    first = 0
    for group in groups:
        size, rank, inputs = group.Q_nrI.shape
        step = max(1, tile_ranks // rank)
        for start in range(0, size, step):
            stop = min(size, start + step)
            Q_RI = group.Q_nrI[start:stop].reshape(-1, inputs)
            C_RO = group.C_nrO[start:stop].reshape(len(Q_RI), -1)
            tiles.append((slice(first + start, first + stop), rank, Q_RI, C_RO))
        first += size
    gram_nn = np.zeros((first, first))
    for (rows, r, Q_RI, C_RO), (columns, other_r, other_Q, other_C) in combinations_with_replacement(
        tiles, 2
    ):
        product_RR = (Q_RI @ other_Q.T) * (C_RO @ other_C.T)
        by_row = product_RR.reshape(-1, r, len(other_Q)).sum(axis=1)
        block = by_row.reshape(len(by_row), -1, other_r).sum(axis=2, dtype=np.float64)
        gram_nn[rows, columns] = block
        gram_nn[columns, rows] = block.T
    return gram_nn


def _through_strips(groups: Sequence[_SameRank]) -> np.ndarray:
    """Form the changes for a few outputs at a time, and add up their inner products."""
    size = sum(len(group.places) for group in groups)
    inputs, outputs = groups[0].Q_nrI.shape[2], groups[0].C_nrO.shape[2]
    step = min(outputs, max(1, STRIP_BYTES // (4 * size * inputs)))
    strip_noI = np.empty((size, step, inputs), dtype=np.float32)
    gram_nn = np.zeros((size, size))
    for start in range(0, outputs, step):
        width = min(step, outputs - start)
        first = 0
        for group in groups:
            C_nor = group.C_nrO[:, :, start : start + width].swapaxes(1, 2)
            rows = slice(first, first + len(group.places))
            np.matmul(C_nor, group.Q_nrI, out=strip_noI[rows, :width])
            first += len(group.places)
        flat_nF = strip_noI[:, :width].reshape(size, -1)
        gram_nn += flat_nF @ flat_nF.T
    return gram_nn


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
