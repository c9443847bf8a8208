"""The open rows that joined the shots, what was left out, and where they lie among the pool."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kshot.report.parts.reading import Missing, missing, parsing, pick
from kshot.run_folder import DATA_MAP, DATA_SUMMARY, SELECTED, RunFolder


@dataclass(frozen=True, slots=True)
class KeptRow:
    """An open row that was selected, and the shot it is nearest to."""

    id: str
    source: str
    relevance: float
    nearest_shot: str
    request: str
    response: str
    rationale: str


@dataclass(frozen=True, slots=True)
class NearCopy:
    """A row dropped because it copies a kept one."""

    id: str
    reason: str
    kept: str
    cosine: float


@dataclass(frozen=True, slots=True)
class MapPoint:
    """A row on the map; `relevance` is None for a shot."""

    x: float
    y: float
    source: str
    text: str
    relevance: float | None = None


@dataclass(frozen=True, slots=True)
class DataMap:
    """Shots, kept rows and a sample of the pool in the plane of their two main directions.

    Attributes:
        shots: The shots; `text` begins with their id.
        kept: Rows in the order kept.
        pool: Rows drawn at random, kept ones among them.
        explained: Share of the variance that the two directions hold.
        num_comparable: Rows that the sample stands for: the pool, or the shortlist where there is one.
    """

    shots: tuple[MapPoint, ...]
    kept: tuple[MapPoint, ...]
    pool: tuple[MapPoint, ...]
    explained: float
    num_comparable: int


@dataclass(frozen=True, slots=True)
class SelectedData:
    """The selected rows, and what was left out.

    Attributes:
        rows: In the order kept.
        pool_rows: Distinct rows of the pool; 0 where the task asks for no data.
        duplicates_skipped: Exact copies met while reading the pool.
        sources: Rows kept of each source.
        avoided: Id and reason of each row that was not allowed.
        without_rationale: Rows that were not allowed since they have no rationale.
        dropped: Near-copies of kept rows.
        map: Where rows lie; None where the run has no map.
    """

    rows: tuple[KeptRow, ...]
    pool_rows: int
    duplicates_skipped: int
    sources: Mapping[str, int]
    avoided: Mapping[str, str]
    without_rationale: int
    dropped: tuple[NearCopy, ...]
    map: DataMap | None


def read_data(run: RunFolder) -> SelectedData | Missing:
    """Read the selected rows.

    Raises:
        RunFolderError: A file is damaged or lacks something.
    """
    path = run.path("data", DATA_SUMMARY)
    if not path.is_file():
        return missing(run, "No open rows are selected yet", "augment")
    summary = run.read_json("data", DATA_SUMMARY)
    with parsing(path):
        dropped = tuple(pick(NearCopy, one) for one in summary["dropped"])
        kept = {key: summary[key] for key in ("pool_rows", "sources", "avoided")}
    with parsing(run.path("data", SELECTED)):
        lines = run.path("data", SELECTED).read_text(encoding="utf-8").split("\n")  # a text may hold U+2028
        rows = tuple(_kept_row(json.loads(line)) for line in lines if line)
    return SelectedData(
        rows=rows,
        duplicates_skipped=summary.get("duplicates_skipped", 0),
        without_rationale=summary.get("without_rationale", 0),
        dropped=dropped,
        map=_read_map(run),
        **kept,
    )


def _kept_row(row: Mapping[str, Any]) -> KeptRow:
    return KeptRow(
        id=row.get("id", ""),
        source=row["source"],
        relevance=row["relevance"],
        nearest_shot=row["nearest_shot"],
        request="\n\n".join(row[key] for key in ("instruction", "input") if row.get(key)),
        response=row["output"],
        rationale=row.get("rationale") or "",
    )


def _read_map(run: RunFolder) -> DataMap | None:
    path = run.path("data", DATA_MAP)
    if not path.is_file():
        return None
    found = run.read_json("data", DATA_MAP)
    with parsing(path):
        sources = found["sources"]
        parts = {
            part: tuple(
                MapPoint(x, y, "" if source is None else sources[source], text, relevance)
                for x, y, source, relevance, text in found[part]
            )
            for part in ("shots", "kept", "pool")
        }
        return DataMap(**parts, explained=found["explained"], num_comparable=found["num_comparable"])
