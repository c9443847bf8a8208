"""Runs inside the sandbox: two queries over several databases, filled at random from seeds."""

import random
import sqlite3
from collections import Counter
from contextlib import closing
from typing import Any

NUM_ROWS = 24  # of a table: enough for ties and for rows that nearly fit, few enough for joins of four tables
EMPTY_CELLS = 0.1  # tells COUNT of one column from COUNT of another
TAKEN_AS_PLANTED = 0.7  # so that no row is in every database
MAX_RESULT_ROWS = 10_000
_NUMERIC = ("INT", "REAL", "NUM", "DEC", "FLOA", "DOUB", "BOOL")
_ALLOWED = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


def main(data: dict[str, Any]) -> dict[str, Any]:
    """Compare the results of two queries.

    Args:
        data: `schema` (statements), `gold`, `prediction`, `ordered`, `num_databases`, and what cells are made
            of: `numbers` and `texts`, or `values` by column with `planted` rows (cells by column).

    Returns:
        `gold_error` where the right query does not run; `error` where the prediction does not; else `same`,
        and `informative`: whether the right query finds anything.
    """
    informative = False
    for seed in range(data["num_databases"]):
        with closing(sqlite3.connect(":memory:")) as database:
            try:
                given = _make(database, data, random.Random(seed), fill=seed > 0)
                if seed == 0 and not given:
                    continue
                database.set_authorizer(_only_questions)
                gold = _ask(database, data["gold"])
            except (sqlite3.Error, sqlite3.Warning) as error:
                return {"gold_error": str(error)}
            try:
                found = _ask(database, data["prediction"])
            except (sqlite3.Error, sqlite3.Warning) as error:
                return {"error": str(error)}
        if not (gold == found if data["ordered"] else Counter(gold) == Counter(found)):
            return {"same": False, "informative": True}
        informative = informative or any(cell not in (None, 0.0) for row in gold for cell in row)
    return {"same": True, "informative": informative}


def _only_questions(action: int, *_: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _make(database: sqlite3.Connection, data: dict[str, Any], draw: random.Random, *, fill: bool) -> bool:
    """Make the tables; return whether the schema's own statements put rows in."""
    for statement in data["schema"]:
        database.execute(statement)
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    given = any(database.execute(f"SELECT 1 FROM {_quoted(name)}").fetchone() for name in names)
    for name in names if fill else ():
        database.execute(f"DELETE FROM {_quoted(name)}")
        columns = [(row[1], row[2]) for row in database.execute(f"PRAGMA table_info({_quoted(name)})")]
        marks = ", ".join("?" * len(columns))
        rows = _planted(columns, data, draw) if "values" in data else _random(columns, data, draw)
        # OR IGNORE: two rows with one key
        database.executemany(f"INSERT OR IGNORE INTO {_quoted(name)} VALUES ({marks})", rows)
    return given


def _random(columns: list[tuple[str, str]], data: dict[str, Any], draw: random.Random) -> list[list[Any]]:
    pools = [
        data["numbers"] if any(kind in declared.upper() for kind in _NUMERIC) else data["texts"]
        for _, declared in columns
    ]
    return [[draw.choice(pool) for pool in pools] for _ in range(NUM_ROWS)]


def _planted(columns: list[tuple[str, str]], data: dict[str, Any], draw: random.Random) -> list[list[Any]]:
    def cell(name: str) -> Any:
        return None if draw.random() < EMPTY_CELLS else draw.choice(data["values"][name])

    rows = [[cell(name) for name, _ in columns] for _ in range(NUM_ROWS)]
    for row in data["planted"]:
        if draw.random() < TAKEN_AS_PLANTED:
            rows.append([row[name] if name in row else cell(name) for name, _ in columns])
    draw.shuffle(rows)
    return rows


def _ask(database: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    found = database.execute(query).fetchmany(MAX_RESULT_ROWS)
    return [tuple(_comparable(cell) for cell in row) for row in found]


def _comparable(cell: Any) -> Any:
    """Return a cell as it is compared: a mean does not depend on the order of its rows."""
    return float(f"{cell:.9g}") if isinstance(cell, int | float) else cell


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
