"""Adapters compared as the paper does: cosines of A and of B, matrix by matrix.

M adapters   n adapters with a given module   F numbers in one of its factors
"""

from collections.abc import Sequence

import numpy as np

from kshot.errors import AdapterError
from kshot.experts.module_passes import Members


class MatrixCosines:
    """Means of cos(A1, A2) and cos(B1, B2), gathered module by module."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sum_MM = np.zeros((len(names), len(names)))
        self._count_MM = np.zeros((len(names), len(names)))

    def add(self, module: str, members: Members) -> None:
        """Count one module of all adapters that have it.

        Raises:
            AdapterError: Ranks differ, or a matrix is zero.
        """
        self._check_equal_ranks(module, members)
        pairs = np.ix_(list(members), list(members))
        for side in ("A_rI", "B_Or"):
            rows_nF = np.stack([getattr(one, side).double().numpy().ravel() for one in members.values()])
            norms_n = np.linalg.norm(rows_nF, axis=1)
            if not norms_n.all():
                name = self._names[list(members)[int(norms_n.argmin())]]
                raise AdapterError(
                    f"adapter {name!r}: expected weights other than zero, got lora_{side[0]} of {module} "
                    "all zero: use similarity mode delta, or leave it out with experts.exclude"
                )
            rows_nF /= norms_n[:, None]
            self._sum_MM[pairs] += rows_nF @ rows_nF.T
            self._count_MM[pairs] += 1

    def matrix(self) -> np.ndarray:
        """Return the mean cosines, float64 (M, M).

        Raises:
            AdapterError: Two adapters have no module in common.
        """
        if not self._count_MM.all():
            one, other = np.argwhere(self._count_MM == 0)[0]
            raise AdapterError(
                f"expected a module that {self._names[one]!r} and {self._names[other]!r} both adapt, got "
                "none: use similarity mode delta"
            )
        return self._sum_MM / self._count_MM

    def _check_equal_ranks(self, module: str, members: Members) -> None:
        first, want = next((place, one.r) for place, one in members.items())
        for place, one in members.items():
            if one.r != want:
                raise AdapterError(
                    f"{module}: expected equal ranks, got {want} in {self._names[first]!r} and {one.r} in "
                    f"{self._names[place]!r}: use similarity mode delta"
                )
