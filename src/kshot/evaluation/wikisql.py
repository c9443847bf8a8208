"""The queries of WikiSQL as text2sql-data writes them, which no database reads, as SQL that SQLite does.

    SELECT MAX TABLEalias0.WEEK_FIELD FROM TABLE AS TABLEalias0 WHERE TABLEalias0.RANK_FIELD > 8 ;

One table, at most one aggregate, conditions joined by AND. Column names hold any letter but white space;
values are quoted only where they hold a space.

Reference: Zhong et al. 2017, arXiv 1709.00103; Finegan-Dollak et al. 2018, arXiv 1806.09029 (text2sql-data).
"""

import re
from dataclasses import dataclass
from typing import Literal

_COLUMN = r"(?:TABLEalias0\.)?(?P<{}>\S+?_FIELD)"
_QUERY = re.compile(
    r"\s*SELECT\s+(?:(?P<aggregate>MAX|MIN|COUNT|SUM|AVG)\b\s*)?(?P<opened>\(\s*)?"
    + _COLUMN.format("column")
    + r"(?(opened)\s*\))\s+FROM\s+TABLE(?:\s+AS\s+TABLEalias0)?(?:\s+WHERE\s+(?P<conditions>.+?))?\s*;?\s*",
    re.DOTALL | re.IGNORECASE,
)
_AND = re.compile(r"\s+AND\s+(?=(?:TABLEalias0\.)?\S+_FIELD\s*[=<>])", re.IGNORECASE)
_CONDITION = re.compile(
    _COLUMN.format("column") + r"\s*(?P<sign>[=<>])\s*(?P<value>.+)", re.DOTALL | re.IGNORECASE
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")

Sign = Literal["=", "<", ">"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison.

    Attributes:
        column: Compared.
        sign: How.
        value: With what: a number where the text is one, thousands commas left out; else text in lower case,
            as WikiSQL compares.
    """

    column: str
    sign: Sign
    value: float | str


@dataclass(frozen=True, slots=True)
class Query:
    """A query of this form.

    Attributes:
        aggregate: Of the values, empty for none.
        column: Asked for.
        conditions: All of which hold.
    """

    aggregate: str
    column: str
    conditions: tuple[Condition, ...]

    def to_sql(self) -> str:
        """Return SQLite's form, over the table named `table`."""
        column = quoted(self.column)
        sql = f'SELECT {f"{self.aggregate}({column})" if self.aggregate else column} FROM "table"'
        conditions = [f"{quoted(one.column)} {one.sign} {literal(one.value)}" for one in self.conditions]
        return f"{sql} WHERE {' AND '.join(conditions)}" if conditions else sql


def read_wikisql(text: str) -> Query | None:
    """Return the query that a text is in this form, None where it is none."""
    match = _QUERY.fullmatch(text)
    if match is None:
        return None
    conditions = []
    for part in _AND.split(match["conditions"]) if match["conditions"] else ():
        condition = _CONDITION.fullmatch(part.strip())
        if condition is None:
            return None
        sign: Sign = condition["sign"]  # type: ignore[assignment]
        conditions.append(Condition(condition["column"].upper(), sign, _value(condition["value"])))
    return Query((match["aggregate"] or "").upper(), match["column"].upper(), tuple(conditions))


def quoted(name: str) -> str:
    """Return a name as SQL quotes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: float | str) -> str:
    """Return a value as SQL writes it."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _value(text: str) -> float | str:
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] == '"':
        bare = bare[1:-1].strip()
    if _NUMBER.fullmatch(bare) and len(bare) < 30:
        return float(bare.replace(",", ""))
    return bare.casefold()
