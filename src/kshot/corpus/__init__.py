"""The open data: read a pool, embed it, and pick the rows that are close to the shots and distinct."""

from kshot.corpus.decontamination import KeptOut, Match, rows_to_avoid
from kshot.corpus.embedded_text import text_of
from kshot.corpus.embedding_store import embed_pool
from kshot.corpus.encoders import (
    HiddenStateEncoder,
    SentenceEncoder,
    StaticEncoder,
    TextEncoder,
    load_encoder,
)
from kshot.corpus.export import DatasetForm, dataset_rows, push_dataset, write_dataset
from kshot.corpus.pool import Pool
from kshot.corpus.pool_folder import PoolFile, read_pool_file, write_pool_file
from kshot.corpus.pool_info import PoolInfo, describe_pool
from kshot.corpus.pool_reading import pool_contents, read_pool
from kshot.corpus.row_store import SkippedRows
from kshot.corpus.rules import LengthLimits, Rule, SourceQuota
from kshot.corpus.scan import Relevance, Strategy, relevance
from kshot.corpus.search import Found, search_pool
from kshot.corpus.selection import DataSelection, Dropped, select_data
from kshot.corpus.survey import PoolSurvey, survey_pool
from kshot.corpus.two_stage import shortlist
from kshot.corpus.vectors import Vectors
from kshot.text_form import fingerprint

__all__ = [
    "DataSelection",
    "DatasetForm",
    "Dropped",
    "Found",
    "HiddenStateEncoder",
    "KeptOut",
    "LengthLimits",
    "Match",
    "Pool",
    "PoolFile",
    "PoolInfo",
    "PoolSurvey",
    "Relevance",
    "Rule",
    "SentenceEncoder",
    "SkippedRows",
    "SourceQuota",
    "StaticEncoder",
    "Strategy",
    "TextEncoder",
    "Vectors",
    "dataset_rows",
    "describe_pool",
    "embed_pool",
    "fingerprint",
    "load_encoder",
    "pool_contents",
    "push_dataset",
    "read_pool",
    "read_pool_file",
    "relevance",
    "rows_to_avoid",
    "search_pool",
    "select_data",
    "shortlist",
    "survey_pool",
    "text_of",
    "write_dataset",
    "write_pool_file",
]
