"""An encoder that is right to the last bit."""

from collections.abc import Sequence

import numpy as np

from kshot.corpus.encoders.protocol import unit_rows


class LetterEncoder:
    """Counts letters, knows nothing of a text without any, and remembers which texts it embedded."""

    def __init__(self, name: str = "letters", letters: str = "abcdefgh") -> None:
        self.name, self._letters = name, letters
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit rows (N, 8)."""
        self.texts += texts
        counts = [[text.lower().count(letter) for letter in self._letters] for text in texts]
        matrix_ND = np.array(counts, dtype=np.float32).reshape(len(texts), len(self._letters))
        return unit_rows(matrix_ND, self.name, texts)
