"""Scorer `sql`: a query is right if it finds what the right query finds, over databases made for the two.

Rows seldom come with a database, so some are made: the tables of the `CREATE TABLE` statements in the row's
question, or the one table of a WikiSQL query, filled at random (seeded) from the values that the two queries
name, their neighbours and others. Queries of WikiSQL are translated first (`wikisql`), and rows are planted
that meet all conditions of a query, or all but one.

What it can tell: queries that differ in what they find, be it by one comparison, value, column or aggregate.
Order of conditions, spelling and redundancy do not count; the order of columns does, that of rows where the
right query sorts. What it cannot: whether a difference shows in the real data (queries that agree there may
differ here: `> 5` and `>= 6` over whole numbers), and differences too rare for random rows. Where no database
can be made, or the right query finds nothing in any, texts are compared, white space and case aside; the
outcome of each prediction says which it was.

Reference: Zhong et al. 2020, arXiv 2010.02840 (test-suite accuracy), whose databases are distilled ones.
"""

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kshot.errors import ExampleError
from kshot.evaluation.inside import text_of
from kshot.evaluation.sandbox import open_sandbox
from kshot.evaluation.wikisql import Query, quoted, read_wikisql
from kshot.examples import Example

NUM_DATABASES = 12  # of 856 changed WikiSQL queries 10 went unnoticed with 4, none with 8
SAME_TEXT, OTHER_TEXT = "same text", "other text, not run"
SAME_RESULTS, OTHER_RESULTS = "same results", "other results"
_QUERY_START = re.compile(
    r"\bWITH\s+(?:RECURSIVE\s+)?\w+(?:\s*\([^)]*\))?\s+AS\s*\(|\bSELECT\b", re.IGNORECASE
)
_QUERY_END = re.compile(r";\s*(?:\n|$)|\n\s*\n|\n```")
_STATEMENT_START = re.compile(r"\bCREATE\s+TABLE\b|\bINSERT\s+INTO\b", re.IGNORECASE)
_ORDERED = re.compile(r"\bORDER\s+BY\b", re.IGNORECASE)
_LITERAL = re.compile(r"'((?:[^']|'')*)'|\"([^\"]*)\"|(?<![\w.])(\d+(?:\.\d+)?)(?![\w.])")
_SOME_NUMBERS = (0, 1, 2, 3, 4)  # few, so that the keys of two tables meet
_SOME_TEXTS = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Comparison:
    """A query against the right one.

    Attributes:
        correct: Whether it counts.
        outcome: `same results`, `other results`, `same text`, `other text, not run`, or what went wrong.
    """

    correct: bool
    outcome: str


def sql(prediction: str, example: Example) -> bool:
    """Say whether the query in an answer finds what the example's right query finds.

    Raises:
        ExampleError: The right answer holds no query.
        SandboxError: The sandbox cannot be started.
    """
    return compare_queries(prediction, example).correct


def compare_queries(prediction: str, example: Example) -> Comparison:
    """Compare, and say how; raises as `sql`."""
    gold = gold_query_of(example)
    query = query_of(prediction)
    if query is None:
        return Comparison(False, "no query")
    if query == gold:
        return Comparison(True, SAME_TEXT)
    schema = schema_of(example.request)
    wiki = None if schema else read_wikisql(gold)
    if wiki is not None:
        predicted = read_wikisql(query)
        if predicted is None:
            return Comparison(False, "no query of WikiSQL's form")
        return _run(_over_one_table(wiki, predicted)) or _compare_texts(gold, query)
    found = _run(_over_schema(schema, gold, query)) if schema else None
    return found or _compare_texts(gold, query)


def gold_query_of(example: Example) -> str:
    """Return the right query.

    Raises:
        ExampleError: The example's answer holds none.
    """
    gold = query_of(example.gold)
    if gold is None:
        raise ExampleError(
            f"scorer sql expects a query in the answer of {example.id or 'the example'}, "
            f"got {example.gold[:60]!r}: use scorer exact_match"
        )
    return gold


def query_of(text: str) -> str | None:
    """Return the first query in a text, without the semicolon at its end; None if there is none."""
    start = _QUERY_START.search(text)
    if start is None:
        return None
    query = text[start.start() :]
    end = _QUERY_END.search(query)
    return (query[: end.start()] if end else query).strip().rstrip(";").rstrip() or None


def schema_of(text: str) -> list[str]:
    """Return the `CREATE TABLE` and `INSERT INTO` statements in a text, in order; none without a table."""
    statements = []
    for start in _STATEMENT_START.finditer(text):
        rest = text[start.start() :]
        end = _end_of_brackets(rest) if rest[:6].upper() == "CREATE" else _end_of_statement(rest)
        if end:
            statements.append(rest[:end])
    return statements if any(one[:6].upper() == "CREATE" for one in statements) else []


def _end_of_brackets(text: str) -> int:
    depth, quote = 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"`":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if depth == 0:
                return place + 1
    return 0


def _end_of_statement(text: str) -> int:
    ends = (place + 1 for place, letter in enumerate(text) if letter == ";")
    return next((end for end in ends if sqlite3.complete_statement(text[:end])), 0)


def _compare_texts(gold: str, query: str) -> Comparison:
    same = " ".join(query.split()).casefold() == " ".join(gold.split()).casefold()
    return Comparison(same, SAME_TEXT if same else OTHER_TEXT)


def _over_one_table(gold: Query, predicted: Query) -> dict[str, Any]:
    """Return a table with the columns of both queries, the values they name, and rows that nearly fit."""
    conditions = [*gold.conditions, *predicted.conditions]
    columns = sorted({gold.column, predicted.column, *(one.column for one in conditions)})
    values = {
        name: _neighbours([one.value for one in conditions if one.column == name]) or list(range(10))
        for name in columns
    }
    table = f'CREATE TABLE "table" ({", ".join(quoted(name) for name in columns)})'
    return {
        "schema": [table],
        "gold": gold.to_sql(),
        "prediction": predicted.to_sql(),
        "ordered": False,
        "values": values,
        "planted": [row for query in (gold, predicted) for row in _rows_that_fit(query)],
    }


def _rows_that_fit(query: Query) -> list[dict[str, Any]]:
    """Return rows, as cells by column, that meet all conditions, and such that miss one."""
    fits: dict[str, Any] = {}
    misses: list[tuple[str, Any]] = []
    for one in query.conditions:
        low, high = (one.value - 1, one.value + 1) if isinstance(one.value, float) else ("", one.value + "z")
        fits[one.column] = {"=": one.value, "<": low, ">": high}[one.sign]
        misses += [
            (one.column, cell) for cell in {"=": (low, high), "<": (one.value,), ">": (one.value,)}[one.sign]
        ]
    return [fits, fits] + [fits | {column: cell} for column, cell in misses]


def _neighbours(values: Sequence[float | str]) -> list[float | str]:
    found: list[float | str] = []
    for value in values:
        found += [value - 1, value, value + 1] if isinstance(value, float) else [value, value + "z"]
    return sorted(set(found), key=lambda value: (isinstance(value, str), value))


def _over_schema(schema: list[str], gold: str, query: str) -> dict[str, Any]:
    literals = [match for text in (gold, query) for match in _LITERAL.finditer(text)]
    texts = {(match[1] or match[2] or "").replace("''", "'") for match in literals if match[3] is None}
    numbers = {float(match[3]) for match in literals if match[3] is not None}
    near = {value + step for value in numbers for step in (-1, 0, 1)}
    patterns = {text.strip("%").replace("%", " ") for text in texts if "%" in text}
    return {
        "schema": schema,
        "gold": gold,
        "prediction": query,
        "ordered": bool(_ORDERED.search(gold)),
        "numbers": [
            int(value) if value == int(value) else value for value in sorted({*near, *_SOME_NUMBERS})
        ],
        "texts": sorted({*texts, *patterns, *_SOME_TEXTS}),
    }


def _run(job: dict[str, Any]) -> Comparison | None:
    """Compare by execution; None where the right query does not run, or finds nothing."""
    job |= {"num_databases": NUM_DATABASES + 1}  # the first holds the schema's own rows, if there are any
    outcome = open_sandbox().run(text_of("run_queries"), job)
    found = outcome.value
    if found is None:
        return Comparison(False, outcome.problem or "no result")
    if "gold_error" in found or not found.get("informative", True):
        return None
    if "error" in found:
        return Comparison(False, found["error"])
    return Comparison(found["same"], SAME_RESULTS if found["same"] else OTHER_RESULTS)
