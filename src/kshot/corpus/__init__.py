"""The open data: read a pool, embed it, and pick the rows that are close to the shots and distinct."""

from kshot.corpus.embedding import SentenceEncoder, TextEncoder, text_of
from kshot.corpus.pool import Pool, SkippedRows, fingerprint, read_pool, rows_to_avoid
from kshot.corpus.scan import Relevance, Strategy, relevance
from kshot.corpus.selection import DataSelection, Dropped, select_data

__all__ = [
    "DataSelection",
    "Dropped",
    "Pool",
    "Relevance",
    "SentenceEncoder",
    "SkippedRows",
    "Strategy",
    "TextEncoder",
    "fingerprint",
    "read_pool",
    "relevance",
    "rows_to_avoid",
    "select_data",
    "text_of",
]
