"""WikiSQL queries as text2sql-data writes them."""

import pytest

from kshot.evaluation.wikisql import Condition, Query, read_wikisql


@pytest.mark.parametrize(
    ("text", "query"),
    [
        (
            'SELECT TO_PAR_FIELD FROM TABLE AS TABLEalias0 WHERE TABLEalias0.SCORE_FIELD = 76-73=285 ;',
            Query("", "TO_PAR_FIELD", (Condition("SCORE_FIELD", "=", "76-73=285"),)),
        ),
        (
            'SELECT MAX NO._IN_SERIES_FIELD FROM TABLE WHERE TABLEalias0.BY_FIELD = "Kelly and Ann" ;',
            Query("MAX", "NO._IN_SERIES_FIELD", (Condition("BY_FIELD", "=", "kelly and ann"),)),
        ),
        (
            "SELECT SUM 2008_FIELD FROM TABLE AS TABLEalias0 WHERE TABLEalias0.2003_FIELD < 3,296,267 "
            "AND TABLEalias0.OPPONENTS'_POINTS_FIELD > -1.5 ;",
            Query(
                "SUM",
                "2008_FIELD",
                (Condition("2003_FIELD", "<", 3296267.0), Condition("OPPONENTS'_POINTS_FIELD", ">", -1.5)),
            ),
        ),
        ("select count(week_field) from table", Query("COUNT", "WEEK_FIELD", ())),
        (
            "SELECT A_FIELD FROM TABLE WHERE HEIGHT_FIELD = 5'8\"",
            Query("", "A_FIELD", (Condition("HEIGHT_FIELD", "=", "5'8\""),)),
        ),
        (
            'SELECT A_FIELD FROM TABLE WHERE B_FIELD = "12"',
            Query("", "A_FIELD", (Condition("B_FIELD", "=", 12.0),)),
        ),
        ("SELECT A_FIELD FROM TABLE WHERE", None),
        ("SELECT A_FIELD, B_FIELD FROM TABLE", None),
        ("SELECT A_FIELD FROM TABLE WHERE B_FIELD LIKE x", None),
        ("SELECT name FROM people", None),
        ("", None),
    ],
)  # fmt: skip
def test_read(text: str, query: Query | None) -> None:
    assert read_wikisql(text) == query


def test_to_sql() -> None:
    query = Query("MAX", 'A"_FIELD', (Condition("B_FIELD", "=", "o'neill"), Condition("C_FIELD", "<", 8.0)))
    assert query.to_sql() == (
        'SELECT MAX("A""_FIELD") FROM "table" WHERE "B_FIELD" = \'o\'\'neill\' AND "C_FIELD" < 8.0'
    )
