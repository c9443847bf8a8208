"""What every encoder does.

N: texts, D: embedding size.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from kshot.errors import SourceError


class TextEncoder(Protocol):
    """Anything that embeds texts."""

    @property
    def name(self) -> str:
        """What tells its vectors from all others: other weights or another prefix change it."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return one unit-norm float32 row per text, (N, D); the same list gives the same bytes.

        A text of which the encoder knows nothing has a row of zeros, which is similar to nothing.

        Raises:
            SourceError: A vector is not finite.
        """
        ...


def unit_rows(vectors_ND: np.ndarray, name: str, texts: Sequence[str]) -> np.ndarray:
    """Divide each row by its norm; zeros stay zeros.

    Raises:
        SourceError: A row is not finite.
    """
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    broken = np.flatnonzero(~np.isfinite(norms_N1))
    if broken.size:
        text = texts[broken[0]]
        shown = repr(text if len(text) <= 60 else text[:60] + "...")
        raise SourceError(
            f"expected finite vectors from the encoder {name!r}, got norm {norms_N1[broken[0], 0]} "
            f"for {shown}: its weights are damaged"
        )
    unit_ND: np.ndarray = vectors_ND / np.where(norms_N1 == 0, 1, norms_N1)
    return unit_ND
