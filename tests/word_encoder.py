"""A sentence encoder that has a vector for every word, and of a text their mean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


def write_word_encoder(folder: Path, words: Sequence[str], vectors_WD: np.ndarray) -> Path:
    """Write an encoder; the first vector is that of every other word, the next ones are those of `words`."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    embedding = StaticEmbedding(tokenizer, vectors_WD.astype(np.float32))
    SentenceTransformer(modules=[embedding], device="cpu").save(str(folder))
    return folder


def random_vectors(words: Sequence[str], dimensions: int) -> np.ndarray:
    """The same each time, (1 + words, dimensions)."""
    return np.random.default_rng(0).normal(size=(1 + len(words), dimensions))
