"""How alike the adapters of a bank are: cosines of their weight changes.

M adapters   F numbers of a fingerprint
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np

from kshot.bank.fingerprint import fingerprint
from kshot.errors import AdapterError, ConfigError
from kshot.experts.gram import module_gram
from kshot.experts.matrix_cosines import MatrixCosines
from kshot.experts.module_passes import HELD_BYTES, LoadableAdapter, Members, passes_by_module
from kshot.progress import Advance

SimilarityMode = Literal["delta", "paper", "fingerprint"]

_CANCELLED = 1e-14  # of the factors' sizes: a squared norm below it is rounding error


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
    bank: Iterable[LoadableAdapter],
    mode: SimilarityMode = "delta",
    progress: Advance | None = None,
    *,
    held_bytes: int = HELD_BYTES,
) -> Similarity:
    """Compare every two adapters of a bank by their weights alone.

    `delta`: cosine of the weight changes `ΔW = s B A` over the union of modules, a missing module being 0.
    Exact to about 1e-7, for any rank, scaling and targets; unchanged by (A, B) -> (RA, BR⁻¹).
    `paper`: mean of cos(A1, A2) and cos(B1, B2) over the modules that both have, which (RA, BR⁻¹) changes.
    `fingerprint`: `delta` estimated from a fingerprint of each adapter, with a standard error of at most
    0.016. An adapter with an attribute `fingerprint` that is not None is not read; time and memory hardly
    grow.

    Args:
        bank: A `Bank`, or adapters with `.name` and `.load()`.
        mode: `delta`, `paper` or `fingerprint`.
        progress: Called with the number of adapters whose share of the work was done; M in all.
        held_bytes: Memory for weights, as stored, in the modes `delta` and `paper`: where it is too little
            for the bank, modules are taken a part at a time and the bank is read once for each part.

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
    adapters = list(bank)
    names = tuple(adapter.name for adapter in adapters)
    if not names:
        raise ConfigError("expected at least one adapter to compare, got an empty bank: add some")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ConfigError(f"expected distinct adapter names, got {twice[0]!r} twice: rename one")
    if mode == "fingerprint":
        return fingerprint_similarity(names, np.stack(list(_fingerprints(adapters, progress))))
    cosines = MatrixCosines(names) if mode == "paper" else _ChangeCosines(names)
    tell = _shares(len(names), progress)
    num_done = 0
    for one in passes_by_module(adapters, held_bytes=held_bytes):
        num_modules = num_done + len(one.modules) + one.num_left
        for module, members in one.modules.items():
            cosines.add(module, members)
            num_done += 1
            tell(num_done / num_modules)
    return _similarity(names, cosines.matrix())


def fingerprint_similarity(names: Sequence[str], fingerprints_MF: np.ndarray) -> Similarity:
    """Estimate the cosines of weight changes from the adapters' fingerprints.

    Args:
        names: Of the M adapters.
        fingerprints_MF: One row each, by `kshot.bank.fingerprint.fingerprint` of one version.

    Raises:
        ConfigError: A name twice, or not a row for each name.
        AdapterError: A fingerprint of zeros.
    """
    if fingerprints_MF.ndim != 2 or len(fingerprints_MF) != len(names):
        raise ConfigError(
            f"expected a fingerprint for each of {len(names)} names, got an array of shape "
            f"{fingerprints_MF.shape}: take one of each adapter"
        )
    rows_MF = fingerprints_MF.astype(np.float64)
    norms_M = np.linalg.norm(rows_MF, axis=1)
    _refuse_idle(names, norms_M <= 0)
    rows_MF /= norms_M[:, None]
    return _similarity(tuple(names), rows_MF @ rows_MF.T)


class _ChangeCosines:
    """Cosines of ΔW, gathered module by module."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._gram_MM = np.zeros((len(names), len(names)))
        self._squared_M = np.zeros(len(names))
        self._bound_M = np.zeros(len(names))

    def add(self, module: str, members: Members) -> None:
        gram = module_gram(list(members.values()))
        places = list(members)
        self._gram_MM[np.ix_(places, places)] += gram.cosines_nn * np.outer(gram.norms_n, gram.norms_n)
        self._squared_M[places] += gram.norms_n**2
        self._bound_M[places] += gram.bounds_n**2

    def matrix(self) -> np.ndarray:
        _refuse_idle(self._names, self._squared_M <= _CANCELLED * self._bound_M)
        norms_M = np.sqrt(self._squared_M)
        cosines_MM: np.ndarray = self._gram_MM / np.outer(norms_M, norms_M)
        return cosines_MM


def _similarity(names: tuple[str, ...], cosines_MM: np.ndarray) -> Similarity:
    cosines_MM = np.clip((cosines_MM + cosines_MM.T) / 2, -1.0, 1.0)
    np.fill_diagonal(cosines_MM, 1.0)
    return Similarity(names, cosines_MM)


def _refuse_idle(names: Sequence[str], idle_M: np.ndarray) -> None:
    if idle_M.any():
        raise AdapterError(
            f"adapter {names[int(idle_M.argmax())]!r}: expected a change of the weights, got zero in all its "
            "modules: train it, or leave it out with experts.exclude"
        )


def _fingerprints(adapters: Sequence[LoadableAdapter], progress: Advance | None) -> Iterator[np.ndarray]:
    for adapter in adapters:
        stored: np.ndarray | None = getattr(adapter, "fingerprint", None)
        yield fingerprint(adapter.load()) if stored is None else stored
        if progress:
            progress(1)


def _shares(total: int, progress: Advance | None) -> Callable[[float], None]:
    """Return a function that takes the share of the work done so far, and tells of whole units."""
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        units = int(share * total) - told
        if progress and units:
            progress(units)
        told += units

    return tell
