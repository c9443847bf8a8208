"""The rows of a pool that are nearest to a text."""

from dataclasses import dataclass

import numpy as np

from kshot.corpus.encoders import TextEncoder
from kshot.corpus.pool import Pool
from kshot.corpus.scan import exact_relevance, relevance
from kshot.corpus.vectors import Vectors
from kshot.errors import ConfigError
from kshot.examples import Example


@dataclass(frozen=True, slots=True)
class Found:
    """A row that was found.

    Attributes:
        index: Its row in the pool.
        cosine: With the text.
        source: Where it comes from.
        example: The row.
    """

    index: int
    cosine: float
    source: str
    example: Example


def search_pool(
    pool: Pool, pool_ND: Vectors, encoder: TextEncoder, text: str, *, top: int = 10
) -> list[Found]:
    """Return the rows nearest to a text, nearest first; ties go to the lower index.

    Args:
        pool: The rows.
        pool_ND: Their vectors by the encoder.
        encoder: Embeds the text.
        text: What to look for; written like a request and its response it finds the like.
        top: Rows to return.

    Raises:
        ConfigError: `top` is below 1, or the encoder knows nothing of the text.
    """
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}")
    text_1D = encoder.encode([text])
    if not text_1D.any():
        raise ConfigError(f"expected a text with words that the encoder knows, got {text!r}")
    scores_N = relevance(pool_ND, text_1D, "max")
    rows = np.argsort(-scores_N, kind="stable")[:top]
    rows = rows[scores_N[rows] > -np.inf]
    cosines = exact_relevance(pool_ND, rows, text_1D, "max").scores
    return [
        Found(row, round(float(cosine), 5), pool.source_of(row), pool[row])
        for row, cosine in zip(rows.tolist(), cosines, strict=True)
    ]
