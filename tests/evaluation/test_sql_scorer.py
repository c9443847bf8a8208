"""Scorer `sql`: queries that find the same, whatever they look like, and such that do not."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kshot.errors import ExampleError
from kshot.evaluation.inside import run_queries, text_of
from kshot.evaluation.sandbox import Sandbox
from kshot.evaluation.sql_scorer import (
    NUM_DATABASES,
    OTHER_RESULTS,
    OTHER_TEXT,
    SAME_RESULTS,
    SAME_TEXT,
    _over_one_table,
    compare_queries,
    query_of,
    schema_of,
    sql,
)
from kshot.evaluation.wikisql import Query, read_wikisql
from kshot.examples import Example, read_examples

WIKI = "SELECT COUNT TABLEalias0.TEAM_FIELD FROM TABLE AS TABLEalias0 WHERE {} ;"
GOLD = WIKI.format('TABLEalias0.RANK_FIELD > 8 AND TABLEalias0.RIDER_FIELD = "chris barrett"')
WIKI_ROW = Example("Write an SQL query.", GOLD, input="How many teams?", id="wiki")

SCHEMA = (
    "CREATE TABLE singer (id INTEGER PRIMARY KEY, name VARCHAR(20), age INT); "
    "CREATE TABLE concert (singer_id INTEGER, place TEXT, CHECK (place <> ')'))"
)
PLAIN_ROW = Example(
    "Who is older than 30?",
    "SELECT name FROM singer WHERE age > 30 AND name LIKE 'A%'",
    input=SCHEMA,
    id="plain",
)

pytestmark = pytest.mark.usefixtures("real_sandbox")


@pytest.mark.parametrize(
    ("prediction", "right", "outcome"),
    [
        (GOLD, True, SAME_TEXT),
        (f"The query is:\n```sql\n{GOLD}\n```", True, SAME_TEXT),
        (WIKI.format('RIDER_FIELD = "Chris Barrett" AND RANK_FIELD > 8'), True, SAME_RESULTS),
        (WIKI.format('RIDER_FIELD = "Chris Barrett" AND RANK_FIELD > 8.0'), True, SAME_RESULTS),
        (WIKI.format('RIDER_FIELD = "Chris Barrett" AND RANK_FIELD > 9'), False, OTHER_RESULTS),
        (WIKI.format('RIDER_FIELD = "Chris Barrett" AND RANK_FIELD < 8'), False, OTHER_RESULTS),
        (WIKI.format('RIDER_FIELD = "Chris Barrett" AND ROUND_FIELD > 8'), False, OTHER_RESULTS),
        (WIKI.format('RIDER_FIELD = "Chris Barrett"'), False, OTHER_RESULTS),
        (GOLD.replace("COUNT TABLEalias0.TEAM_FIELD", "COUNT RANK_FIELD"), False, OTHER_RESULTS),
        (GOLD.replace("COUNT", "MAX"), False, OTHER_RESULTS),
        ("SELECT COUNT(*) FROM teams", False, "no query of WikiSQL's form"),
        ("I do not know", False, "no query"),
    ],
)  # fmt: skip
def test_wikisql(prediction: str, right: bool, outcome: str) -> None:
    found = compare_queries(prediction, WIKI_ROW)
    assert (found.correct, found.outcome) == (right, outcome)
    assert sql(prediction, WIKI_ROW) is right


@pytest.mark.parametrize(
    ("prediction", "right", "outcome"),
    [
        ("SELECT s.name FROM singer AS s WHERE 30 < s.age AND s.name LIKE 'a%';", True, SAME_RESULTS),
        ("SELECT name FROM (SELECT * FROM singer WHERE age > 30) WHERE name LIKE 'A%'", True, SAME_RESULTS),
        ("SELECT name FROM singer WHERE age >= 30 AND name LIKE 'A%'", False, OTHER_RESULTS),
        ("SELECT name, age FROM singer WHERE age > 30 AND name LIKE 'A%'", False, OTHER_RESULTS),
        ("SELECT DISTINCT name FROM singer WHERE age > 30 AND name LIKE 'A%'", False, OTHER_RESULTS),
        ("SELECT name FROM singer WHERE age > 30 AND name LIKE 'A%' OR name = 'a'", False, OTHER_RESULTS),
        ("SELECT name FROM singers", False, "no such table: singers"),
        ("SELECT name FROM singer WHERE", False, "incomplete input"),
        ("SELECT load_extension('x') FROM singer", False, "not authorized"),
    ],
)  # fmt: skip
def test_tables_of_the_question(prediction: str, right: bool, outcome: str) -> None:
    found = compare_queries(prediction, PLAIN_ROW)
    assert found.correct is right
    assert outcome in found.outcome


def test_a_query_without_end_is_killed(quick: Sandbox) -> None:
    endless = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT sum(i) FROM n"
    job = {"schema": ["CREATE TABLE t (a INT)"], "gold": "SELECT a FROM t", "prediction": endless}
    job |= {"ordered": False, "num_databases": 2, "numbers": [1], "texts": ["a"]}
    assert quick.run(text_of("run_queries"), job).problem == "used up its processor time"


def test_order_counts_where_the_right_query_sorts() -> None:
    ordered = replace(PLAIN_ROW, output="SELECT name, age FROM singer ORDER BY age DESC, name, id")
    assert sql("SELECT name, age FROM singer ORDER BY 0 - age, name, id", ordered)
    assert not sql("SELECT name, age FROM singer ORDER BY age, name, id", ordered)
    unordered = replace(PLAIN_ROW, output="SELECT name, age FROM singer")
    assert sql("SELECT name, age FROM singer ORDER BY age", unordered)


def test_joins_find_something() -> None:
    row = replace(
        PLAIN_ROW, output="SELECT name FROM singer JOIN concert ON id = singer_id WHERE place = 'Rome'"
    )
    inner = "SELECT name FROM singer, concert WHERE singer_id = singer.id AND concert.place = 'Rome'"
    assert compare_queries(inner, row).outcome == SAME_RESULTS
    assert not sql(inner.replace("Rome", "Bonn"), row)


def test_case_counts_in_values() -> None:
    row = replace(PLAIN_ROW, output="SELECT age FROM singer WHERE name = 'Ann'")
    assert compare_queries("select age from singer where name = 'Ann'", row).outcome == SAME_RESULTS
    assert compare_queries("SELECT age FROM singer WHERE name = 'ann'", row).outcome == OTHER_RESULTS


def test_rows_that_the_question_gives_are_used() -> None:
    row = Example(
        "ask",
        "SELECT a FROM t WHERE b = 'deep'",
        input="CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (7, 'x;y');",
    )
    assert schema_of(row.request) == ["CREATE TABLE t (a INT, b TEXT)", "INSERT INTO t VALUES (7, 'x;y');"]
    assert not sql("SELECT a FROM t WHERE b = 'deep' OR b LIKE 'x_y'", row)  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "context"),
    [
        ("SELECT a FROM t", ""),
        ("SELECT a FROM t WHERE 1 = 0", "CREATE TABLE t (a INT)"),
        ("SELECT a FROM other", "CREATE TABLE t (a INT)"),
        ("SELECT a FROM t", "CREATE TABLE t (a INT, FOREIGN)"),
    ],
)
def test_texts_are_compared_where_no_database_helps(gold: str, context: str) -> None:
    row = Example("ask", gold, input=context)
    assert compare_queries(gold.replace(" ", "  ").lower() + ";", row).outcome == SAME_TEXT
    assert compare_queries("SELECT a FROM t WHERE 1 = 2", row).outcome == OTHER_TEXT


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        ("With this one: SELECT 1;", "SELECT 1"),
        ("select a\nfrom t;\nIt selects a.", "select a\nfrom t"),
        ("SELECT a FROM t\n\nIt selects a.", "SELECT a FROM t"),
        ("SELECT ';' FROM t", "SELECT ';' FROM t"),
        ("with x as (select 1) select * from x", "with x as (select 1) select * from x"),
        ("selected", None),
    ],
)
def test_query_of(text: str, query: str | None) -> None:
    assert query_of(text) == query


def test_a_row_without_a_query_is_named() -> None:
    with pytest.raises(
        ExampleError, match="expects a query in the answer of x, got 'nothing': use scorer exact_match"
    ):
        sql("SELECT 1", Example("ask", "nothing", id="x"))


def _changed(query: Query) -> list[Query]:
    """Return queries that each differ in one thing."""
    aggregate = "MIN" if query.aggregate == "MAX" else "MAX"
    changed = [replace(query, column="OTHER_FIELD"), replace(query, aggregate=aggregate)]
    for place, one in enumerate(query.conditions):
        value = one.value + 1 if isinstance(one.value, float) else f"{one.value}q"
        for other in (
            replace(one, value=value),
            replace(one, column="OTHER_FIELD"),
            replace(one, sign="<" if one.sign != "<" else ">"),
        ):
            conditions = [*query.conditions[:place], other, *query.conditions[place + 1 :]]
            changed.append(replace(query, conditions=tuple(conditions)))
        rest = query.conditions[:place] + query.conditions[place + 1 :]
        changed.append(replace(query, conditions=rest))
    return changed


@pytest.mark.real
def test_invariant_every_change_of_a_wikisql_query_is_noticed(real_sandbox: Sandbox) -> None:
    path = Path(os.environ.get("KSHOT_DATA", "")) / "tasks" / "text2sql_wikisql" / "test.parquet"
    if "KSHOT_DATA" not in os.environ or not path.exists():
        pytest.skip("KSHOT_DATA names no folder with tasks/text2sql_wikisql/test.parquet")
    for row in read_examples(path)[:60]:
        query = read_wikisql(row.output)
        assert query is not None, row.output
        for other in _changed(query):
            job = _over_one_table(query, other) | {"num_databases": NUM_DATABASES + 1}
            assert run_queries.main(job)["same"] is False, (query.to_sql(), other.to_sql())
        turned = replace(query, conditions=query.conditions[::-1])
        job = _over_one_table(query, turned) | {"num_databases": NUM_DATABASES + 1}
        assert run_queries.main(job) == {"same": True, "informative": True}
