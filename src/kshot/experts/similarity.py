"""How alike the adapters of a bank are: cosines of their weight changes, through the factors.

M: adapters, n: adapters with a given module, R: their ranks stacked, I: its inputs, O: its outputs,
F: numbers in one of its factors.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, LoraFactors
from kshot.progress import Advance

SimilarityMode = Literal["delta", "paper"]

_BLOCK_RANKS = 2_048  # stacked ranks multiplied at once: bounds memory to 2 x 2,048 x R float64
_CANCELLED = 1e-14  # of the factors' sizes: a squared norm below it is rounding error
_Modules = dict[str, dict[int, LoraFactors]]  # module -> adapter's index -> factors


class LoadableAdapter(Protocol):
    """What similarity needs of an adapter; `kshot.bank.Adapter` is one."""

    @property
    def name(self) -> str:
        """Its name in the bank."""

    def load(self) -> LoraExpert:
        """Read the factors."""


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Cosines of every two adapters.

    Attributes:
        names: Of the M adapters, in the order of the bank.
        matrix: float64 (M, M), symmetric, in [-1, 1], ones on the diagonal.

    Raises:
        ConfigError: Names that repeat, or a matrix that is not M x M and symmetric.
    """

    names: tuple[str, ...]
    matrix: np.ndarray

    def __post_init__(self) -> None:
        size = len(self.names)
        if len(set(self.names)) != size:
            raise ConfigError(f"expected distinct adapter names, got {', '.join(self.names)}: rename one")
        if self.matrix.shape != (size, size) or not np.array_equal(self.matrix, self.matrix.T):
            raise ConfigError(
                f"expected a symmetric matrix of finite numbers ({size}, {size}) for {size} names, got one "
                f"of shape {self.matrix.shape}: compute it with adapter_similarity"
            )

    def between(self, a: str, b: str) -> float:
        """Return the cosine of two adapters.

        Raises:
            ConfigError: A name is unknown.
        """
        return float(self.matrix[self._index(a), self._index(b)])

    def among(self, names: Sequence[str]) -> np.ndarray:
        """Return the cosines of the named adapters with each other, float64 (len(names), len(names)).

        Raises:
            ConfigError: A name is unknown.
        """
        indices = [self._index(name) for name in names]
        return self.matrix[np.ix_(indices, indices)]

    def mean_pairwise(self, names: Sequence[str]) -> float:
        """Return the mean cosine over all pairs of the named adapters; 0 where there is no pair.

        Raises:
            ConfigError: A name is unknown.
        """
        pairs = self.among(names)[np.triu_indices(len(names), k=1)]
        return float(pairs.mean()) if pairs.size else 0.0

    def _index(self, name: str) -> int:
        if name not in self.names:
            near = get_close_matches(name, self.names, n=3, cutoff=0.0)
            raise ConfigError(
                f"expected an adapter whose similarity is known, got {name!r}; nearest: {', '.join(near)}"
            )
        return self.names.index(name)


def adapter_similarity(
    bank: Iterable[LoadableAdapter], mode: SimilarityMode = "delta", progress: Advance | None = None
) -> Similarity:
    """Compare every two adapters of a bank by their weights alone.

    `delta`: cosine of the weight changes `ΔW = s B A` over the union of modules, a missing module being 0,
    with `<ΔW1, ΔW2> = s1 s2 Σ (B1ᵀB2 ∘ A1A2ᵀ)` and ΔW never formed. Any rank, scaling and targets; unchanged
    by (A, B) -> (RA, BR⁻¹).
    `paper`: mean of cos(A1, A2) and cos(B1, B2) over the modules that both have, which (RA, BR⁻¹) changes.

    Args:
        bank: A `Bank`, or adapters with `.name` and `.load()`. All are held in memory, in the type stored.
        mode: `delta` or `paper`.
        progress: Called with 1 for each adapter read.

    Raises:
        ConfigError: No adapter, a name twice, or an unknown mode.
        AdapterError: An adapter cannot be read, changes nothing, or has another base's shapes; in `paper`
            mode also different ranks, no module in common, or a matrix of zeros.

    Reference: arXiv 2408.15915v2, section 3.2, for `paper`.
    """
    if mode not in get_args(SimilarityMode):
        raise ConfigError(
            f"experts.similarity must be one of {', '.join(get_args(SimilarityMode))}, got {mode!r}"
        )
    experts = list(_load(bank, progress))
    if not experts:
        raise ConfigError("expected at least one adapter to compare, got an empty bank: add some")
    names = tuple(name for name, _ in experts)
    modules: _Modules = {}
    for index, (_, expert) in enumerate(experts):
        for module, factors in expert.factors.items():
            modules.setdefault(module, {})[index] = factors
    cosines_MM = _delta_cosines(names, modules) if mode == "delta" else _paper_cosines(names, modules)
    cosines_MM = np.clip((cosines_MM + cosines_MM.T) / 2, -1.0, 1.0)
    np.fill_diagonal(cosines_MM, 1.0)
    return Similarity(names, cosines_MM)


def _load(bank: Iterable[LoadableAdapter], progress: Advance | None) -> Iterator[tuple[str, LoraExpert]]:
    seen: set[str] = set()
    for adapter in bank:
        if adapter.name in seen:
            raise ConfigError(f"expected distinct adapter names, got {adapter.name!r} twice: rename one")
        seen.add(adapter.name)
        yield adapter.name, adapter.load()
        if progress:
            progress(1)


def _delta_cosines(names: Sequence[str], modules: _Modules) -> np.ndarray:
    gram_MM = np.zeros((len(names), len(names)))
    bound_M = np.zeros(len(names))  # of the squared norms: |sBA| <= |s| |A| |B|
    for module, members in modules.items():
        _check_equal_shapes(names, module, members)
        indices, factors = list(members), list(members.values())
        gram_MM[np.ix_(indices, indices)] += _module_gram(factors)
        bound_M[indices] += [_squared_bound(one) for one in factors]
    squared_M = np.diag(gram_MM)
    for name, squared, bound in zip(names, squared_M, bound_M, strict=True):
        if squared <= _CANCELLED * bound:
            raise AdapterError(
                f"adapter {name!r}: expected a change of the weights, got zero in all its modules: "
                "train it, or leave it out with experts.exclude"
            )
    return gram_MM / np.sqrt(np.outer(squared_M, squared_M))


def _module_gram(factors: Sequence[LoraFactors]) -> np.ndarray:
    """Return <ΔWi, ΔWj> of one module, (n, n): one product of the stacked factors, summed in blocks."""
    A_RI = np.concatenate([one.scaling * _float64(one.A_rI) for one in factors])
    B_RO = np.concatenate([_float64(one.B_Or).T for one in factors])
    starts = np.cumsum([0, *(one.r for one in factors)])
    gram_nn = np.zeros((len(factors), len(factors)))
    first = 0
    while first < len(factors):  # adapters [first, last) against [first, n): the rest is its mirror
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK_RANKS, side="right")) - 1)
        rows, columns = slice(starts[first], starts[last]), slice(starts[first], None)
        product = (A_RI[rows] @ A_RI[columns].T) * (B_RO[rows] @ B_RO[columns].T)
        offsets = starts[first:-1] - starts[first]
        by_row = np.add.reduceat(product, offsets[: last - first], axis=0)
        gram_nn[first:last, first:] = np.add.reduceat(by_row, offsets, axis=1)
        first = last
    return np.triu(gram_nn) + np.triu(gram_nn, k=1).T


def _squared_bound(factors: LoraFactors) -> float:
    sizes = np.linalg.norm(_float64(factors.A_rI)) * np.linalg.norm(_float64(factors.B_Or))
    return float((factors.scaling * sizes) ** 2)


def _paper_cosines(names: Sequence[str], modules: _Modules) -> np.ndarray:
    sum_MM = np.zeros((len(names), len(names)))
    count_MM = np.zeros((len(names), len(names)))
    for module, members in modules.items():
        _check_equal_shapes(names, module, members, with_rank=True)
        pairs = np.ix_(list(members), list(members))
        for side in ("A_rI", "B_Or"):
            rows_nF = np.stack([_float64(getattr(one, side)).ravel() for one in members.values()])
            norms_n = np.linalg.norm(rows_nF, axis=1)
            if not norms_n.all():
                name = names[list(members)[int(norms_n.argmin())]]
                raise AdapterError(
                    f"adapter {name!r}: expected weights other than zero, got lora_{side[0]} of {module} "
                    "all zero: use similarity mode delta, or leave it out with experts.exclude"
                )
            rows_nF /= norms_n[:, None]
            sum_MM[pairs] += rows_nF @ rows_nF.T
            count_MM[pairs] += 1
    if not count_MM.all():
        one, other = np.argwhere(count_MM == 0)[0]
        raise AdapterError(
            f"expected a module that {names[one]!r} and {names[other]!r} both adapt, got none: "
            "use similarity mode delta"
        )
    return sum_MM / count_MM


def _check_equal_shapes(
    names: Sequence[str], module: str, members: dict[int, LoraFactors], *, with_rank: bool = False
) -> None:
    """Check that all adapt a linear layer of one size, and with one rank where the mode needs it."""
    shapes = {
        index: (one.B_Or.shape[0], one.A_rI.shape[1], *((one.r,) if with_rank else ()))
        for index, one in members.items()
    }
    first, want = next(iter(shapes.items()))
    for index, got in shapes.items():
        if got != want:
            advice = (
                "use similarity mode delta"
                if got[:2] == want[:2]
                else "they were trained on different base models; "
                + "even mode delta compares adapters of one base only"
            )
            kind = "outputs, inputs, rank" if with_rank else "outputs, inputs"
            raise AdapterError(
                f"{module}: expected equal shapes ({kind}), got {want} in {names[first]!r} and {got} in "
                f"{names[index]!r}: {advice}"
            )


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
