"""Sentence encoders: models of sentence-transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from kshot.config import EncoderDtype
from kshot.corpus.content_hash import content_hash
from kshot.corpus.encoders.protocol import unit_rows
from kshot.errors import SourceError, reason_of

BATCH_SIZE = 64  # texts of one forward pass; larger ones are no faster on CPUs


class SentenceEncoder:
    """A sentence-transformers model as a `TextEncoder`.

    The vector of a text can differ in its last bits with the texts that share its batch.

    Args:
        folder: With the model, in safetensors.
        prefix: Put before every text, where the model was trained with one.
        dtype: Of its weights; half precision is faster where the processor has it.
        label: What reports call it; the folder's name by default.
        batch_size: Texts in one forward pass; sorted by length inside sentence-transformers.
        device: A torch device; the library's choice by default.

    Raises:
        SourceError: The model cannot be loaded.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        prefix: str = "",
        dtype: EncoderDtype = "float32",
        label: str = "",
        batch_size: int = BATCH_SIZE,
        device: str | None = None,
    ) -> None:
        folder = Path(folder)
        label = label or folder.name
        try:
            self._model = SentenceTransformer(
                str(folder), device=device, model_kwargs={"use_safetensors": True}, trust_remote_code=False
            ).to(getattr(torch, dtype))
        except Exception as error:  # OSError, ValueError, KeyError, safetensors' own and others
            raise SourceError(
                f"cannot load the encoder {label!r}: {reason_of(error)}; expected a sentence-transformers "
                "model in safetensors: check data.encoder"
            ) from error
        self._prefix, self._batch_size = prefix, batch_size
        parts = [label, content_hash(folder)[:16]]
        parts += [f"prefix={prefix!r}"] if prefix else []
        parts += [dtype] if dtype != "float32" else []
        self._name = " ".join(parts)

    @property
    def name(self) -> str:
        """Label, hash of the model's files, and the prefix and half precision where there are."""
        return self._name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; see `TextEncoder.encode`."""
        if not texts:
            return self.encode(["any text"])[:0]  # the library names D differently from version to version
        vectors_ND = np.asarray(
            self._model.encode(
                [self._prefix + text for text in texts],
                batch_size=self._batch_size,
                show_progress_bar=False,
            ),
            dtype=np.float32,
        )
        return unit_rows(vectors_ND, self._name, texts)
