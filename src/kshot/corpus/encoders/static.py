"""Static vectors: the mean of a vector for each token, hundreds of times faster than a sentence encoder.

The bundled ones are WordLlama's (MIT; 32,000 tokens, 256 dimensions, 16 MB), which its wheel carries, while
model2vec keeps its vectors on the Hub. Two files of the wheel are read; the package is not imported.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import embedding_bag

from kshot.corpus.content_hash import content_hash
from kshot.corpus.encoders.protocol import unit_rows
from kshot.errors import MissingExtraError, SourceError, reason_of

_PACKAGE = "wordllama"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


class StaticEncoder:
    """A vector for each token as a `TextEncoder`: a text is the mean of its tokens.

    A text's vector depends on nothing but the text.

    Args:
        weights: A safetensors file with one matrix, (V, D).
        tokenizer: The tokenizer's JSON.
        label: What reports call it.

    Raises:
        SourceError: A file cannot be read.
    """

    def __init__(self, weights: Path, tokenizer: Path, *, label: str = "static") -> None:
        try:
            (matrix_VD,) = load_file(weights).values()
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises no other kind
            raise SourceError(
                f"cannot load static vectors from {weights}: {reason_of(error)}; install them again"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._weights_VD = matrix_VD.float()
        self._name = f"{label} {content_hash(weights)[:16]}-{content_hash(tokenizer)[:8]}"

    @classmethod
    def bundled(cls) -> "StaticEncoder":
        """Return the vectors of the extra `static`.

        Raises:
            MissingExtraError: It is not installed.
        """
        found = find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise MissingExtraError(
                "the encoder 'static' needs WordLlama's vectors: pip install 'kshot[static]'"
            )
        folder = Path(found.submodule_search_locations[0])
        return cls(folder / _WEIGHTS, folder / _TOKENIZER)

    @property
    def name(self) -> str:
        """Label and hash of the vectors and their tokenizer."""
        return self._name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; see `TextEncoder.encode`."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = [len(one.ids) for one in encoded]
        ids = torch.tensor([id_ for one in encoded for id_ in one.ids], dtype=torch.long)
        starts = torch.tensor(np.cumsum([0, *lengths])[:-1], dtype=torch.long)
        vectors_ND = embedding_bag(ids, self._weights_VD, starts, mode="mean")
        return unit_rows(vectors_ND.numpy(), self._name, texts)
