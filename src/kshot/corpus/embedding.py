"""Turn examples into unit vectors whose dot product says how similar two examples are.

N: texts, D: embedding size.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from sentence_transformers import SentenceTransformer

from kshot.errors import ExampleError, SourceError
from kshot.examples import Example

# MiniLM reads 256 tokens, about 1,000 characters, and a tokeniser reads a whole text before it cuts it:
# without a limit one row of 10 MB takes as long as thousands of others. Each part has its own limit, so that
# a long request leaves room for the output in an encoder of longer reach.
MAX_CHARACTERS = 2_000


class TextEncoder(Protocol):
    """Anything that embeds texts."""

    @property
    def name(self) -> str:
        """What tells its vectors from those of another encoder, for caches and reports."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return one unit-norm float32 row per text, (N, D); the same list gives the same bytes."""
        ...


def text_of(example: Example) -> str:
    """Return what is embedded of an example: its request and its output, each cut at `MAX_CHARACTERS`.

    Both sides count: the same question with another kind of answer is another task.

    Reference: arXiv 2408.15915v2, section 3.3 (prompt and answer).
    """
    text = f"{example.request[:MAX_CHARACTERS]}\n{example.output[:MAX_CHARACTERS]}"
    return text.encode("utf-8", "replace").decode(
        "utf-8"
    )  # JSON can hold half a surrogate pair, tokenisers cannot


class SentenceEncoder:
    """A sentence-transformers model as a `TextEncoder`.

    The vector of a text can differ in its last bits with the texts that share its batch.

    Args:
        model: A local folder or a Hub id.
        prefix: Put before every text, where the model was trained with one.
        batch_size: Texts in one forward pass; sorted by length inside sentence-transformers.
        device: A torch device; the library's choice by default.
        show_progress: Draw a progress bar.

    Raises:
        SourceError: The model cannot be loaded.
    """

    def __init__(
        self,
        model: str,
        *,
        prefix: str = "",
        batch_size: int = 64,
        device: str | None = None,
        show_progress: bool = False,
    ) -> None:
        try:
            self._model = SentenceTransformer(model, device=device)
        except (OSError, ValueError) as error:
            raise SourceError(f"cannot load the encoder {model!r}: {error}; check data.encoder") from error
        self._source, self._prefix = model, prefix
        self._batch_size, self._show_progress = batch_size, show_progress

    @property
    def name(self) -> str:
        """Folder or Hub id, and the prefix where there is one."""
        return f"{self._source} prefix={self._prefix!r}" if self._prefix else self._source

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts.

        Returns:
            Unit-norm float32 rows, (N, D).

        Raises:
            ExampleError: A text has a zero vector, so that it is similar to nothing.
            SourceError: The model gives NaN or infinite values.
        """
        if not texts:
            return self.encode(["any text"])[:0]  # the library names D differently from version to version
        vectors_ND = np.asarray(
            self._model.encode(
                [self._prefix + text for text in texts],
                batch_size=self._batch_size,
                show_progress_bar=self._show_progress,
            ),
            dtype=np.float32,
        )
        return self._unit(vectors_ND, texts)

    def _unit(self, vectors_ND: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Divide each row by its norm."""
        norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        broken = np.flatnonzero(~np.isfinite(norms_N1))
        if broken.size:
            raise SourceError(
                f"expected finite vectors from the encoder {self._source!r}, got "
                f"norm {norms_N1[broken[0], 0]} for {_shown(texts[broken[0]])}: its weights are damaged"
            )
        empty = np.flatnonzero(norms_N1 == 0)
        if empty.size:
            raise ExampleError(
                f"expected a vector for every text, got zeros from the encoder {self._source!r} "
                f"for text {empty[0]}, {_shown(texts[empty[0]])}: leave the row out or change data.encoder"
            )
        unit_ND: np.ndarray = vectors_ND / norms_N1
        return unit_ND


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
