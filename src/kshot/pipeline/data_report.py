"""Why each open row was kept or dropped, as the run folder tells it."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from kshot.corpus import DataSelection
from kshot.pipeline.inputs import Inputs

_EXAMPLE_CHARACTERS = 160  # of a source's example: two lines of a terminal

Row = dict[str, Any]


def selected_rows(inputs: Inputs, rows_M: np.ndarray, selection: DataSelection) -> list[Row]:
    """Return the kept rows in the order kept, each with source, relevance and nearest shot."""
    pool = inputs.pool
    kept = zip(rows_M[selection.indices].tolist(), selection.scores, selection.nearest_shot, strict=True)
    return [
        pool[index].to_row()
        | {
            "source": pool.source_of(index),
            "relevance": round(float(score), 5),
            "nearest_shot": inputs.shots[int(shot)].id,
        }
        for index, score, shot in kept
    ]


def dropped_rows(inputs: Inputs, rows_M: np.ndarray, selection: DataSelection) -> list[Row]:
    """Return the rows left out for a reason of their own, each with what it collided with.

    First those that match a shot, a test row or a benchmark, then near-copies of kept rows and rows that a
    limit left out, in the order of their visit.
    """
    pool = inputs.pool
    dropped: list[Row] = [
        {
            "index": index,
            "reason": f"{match.kind}_match",
            "matched": match.matched,
            "share": round(match.share, 4),
        }
        for index, match in inputs.survey.matches.items()
    ]
    for drop in selection.dropped:
        row: Row = {"index": int(rows_M[drop.index]), "reason": drop.reason}
        if drop.kept is not None and drop.cosine is not None:
            row |= {"kept": pool[int(rows_M[drop.kept])].id, "cosine": round(drop.cosine, 5)}
        dropped.append(row)
    return [{"id": pool[row["index"]].id, "source": pool.source_of(row["index"]), **row} for row in dropped]


def summary_of(
    inputs: Inputs, selected: Sequence[Row], dropped: Sequence[Row], num_zero: int
) -> dict[str, Any]:
    """Return counts, the reasons by row, and what each source gave."""
    reasons = Counter(row["reason"] for row in dropped)
    survey = inputs.survey
    texts = _limits(inputs)
    avoided = [
        (row["id"], str(survey.matches[row["index"]]) if "matched" in row else texts[row["reason"]])
        for row in dropped
        if row["reason"] != "near_copy"
    ]
    copies = [
        {key: row[key] for key in ("id", "reason", "kept", "cosine")}
        for row in dropped
        if row["reason"] == "near_copy"
    ]
    sources = Counter(row["source"] for row in selected)
    return {
        "pool_rows": len(inputs.pool),
        "duplicates_skipped": sum(
            skipped.count for skipped in inputs.pool.skipped if skipped.reason == "exact_duplicate"
        ),
        "selected": len(selected),
        "without_rationale": len(survey.without_rationale),
        "without_vector": num_zero,
        "skipped": [
            {"source": one.source, "reason": one.reason, "count": one.count} for one in inputs.pool.skipped
        ],
        "counts": dict(reasons.most_common()),
        "avoided": dict(avoided),
        "dropped": copies,
        "sources": dict(sources.most_common()),
        "by_source": _by_source(selected),
    }


def _limits(inputs: Inputs) -> dict[str, str]:
    """Say what each limit is, for rows that it left out."""
    task = inputs.task
    name = "training.max_length" if task.data.max_tokens is None else "data.max_tokens"
    return {
        "source_full": f"its source gave data.max_per_source = {task.data.max_per_source}",
        "too_short": f"shorter than data.min_tokens = {task.data.min_tokens}",
        "too_long": f"longer than {name} = {task.data.max_tokens or task.training.max_length}",
    }


def _by_source(selected: Sequence[Row]) -> list[Row]:
    """Return what each source gave, the largest first, with its most relevant row."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in selected:
        groups[row["source"]].append(row)
    table = [
        {
            "source": source,
            "rows": len(rows),
            "share": round(len(rows) / len(selected), 4),
            "mean_relevance": round(sum(row["relevance"] for row in rows) / len(rows), 4),
            "example": _shown(max(rows, key=lambda row: row["relevance"])),
        }
        for source, rows in groups.items()
    ]
    return sorted(table, key=lambda row: (-row["rows"], row["source"]))


def _shown(row: Row) -> str:
    asked = row.get("question") or row.get("input") or row["instruction"]
    text = f"{' '.join(asked.split())} -> {' '.join(row['output'].split())}"
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 3] + "..."


def json_lines(rows: Sequence[Row]) -> str:
    """Return one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
