"""Rows of a file with their rationales, and beside them where each came from."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kshot.atomic import write_json, write_text
from kshot.errors import ConfigError, ExampleError, RunFolderError
from kshot.examples import Example, example_from_row
from kshot.rationales.result import RationaleResult, RowResult
from kshot.rows import placed_rows


@dataclass(frozen=True, slots=True)
class SourceRows:
    """A file as it is, and as examples.

    Attributes:
        rows: Raw, so that fields which an example does not have outlast the trip.
        examples: One a row.
    """

    rows: tuple[Mapping[str, Any], ...]
    examples: tuple[Example, ...]


def read_rows(source: str) -> SourceRows:
    """Read every row of a file, a glob pattern or a Hub data set.

    Raises:
        SourceError: Nothing is there, or it cannot be opened.
        ExampleError: A row is no example, or there is none.
    """
    placed = list(placed_rows(source))
    if not placed:
        raise ExampleError(f"expected at least one example in {source}, found none")
    examples = tuple(example_from_row(row, place) for place, row in placed)
    return SourceRows(tuple(row for _, row in placed), examples)


def provenance_file(out: Path) -> Path:
    """Return where the provenance of `out` stands."""
    return out.with_name(f"{out.name}.provenance.json")


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a place that cannot be written, before anything is asked of a model.

    Raises:
        ConfigError: It is not named .jsonl, or exists and is not to be replaced.
        RunFolderError: It cannot be written.
    """
    if out.suffix.lower() != ".jsonl":
        raise ConfigError(f"expected a .jsonl file to write, got {out}: rows are written as JSON lines")
    for file in (out, provenance_file(out)):
        if file.is_dir():
            raise RunFolderError(f"cannot write {file}: it is a folder; choose another name")
    if out.exists() and not force:
        raise ConfigError(f"expected a new file, got {out}, which exists; add --force to replace it")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        reason = "no permission" if parent.is_dir() else f"{parent} is a file"
        raise RunFolderError(f"cannot write {out}: {reason}; choose a folder you can write to")


def write_rows(out: Path, source: SourceRows, result: RationaleResult) -> None:
    """Write every row as it was, with its new rationale where it got one.

    Raises:
        RunFolderError: `out` cannot be written.
    """
    new = {row.index for row in result.rows if row.accepted}
    lines = []
    for index, row in enumerate(source.rows):
        rationale = {"rationale": result.examples[index].rationale} if index in new else {}
        plain = {key: None if _is_nan(value) else value for key, value in row.items()} | rationale
        line = json.dumps(plain, ensure_ascii=False, default=str)  # dates of Parquet files become text
        lines.append(line.encode("utf-8", "replace").decode("utf-8") + "\n")
    write_text(out, "".join(lines))


def write_provenance(out: Path, result: RationaleResult, settings: Mapping[str, Any]) -> None:
    """Write where each rationale came from beside `out`; the same for a run that was killed and went on.

    Args:
        out: The file of rows.
        result: With every attempt.
        settings: Writer, prompt and how answers were drawn and checked.

    Raises:
        RunFolderError: The file cannot be written.
    """
    write_json(provenance_file(out), dict(settings) | summary(result) | {"rows": row_summaries(result)})


def summary(result: RationaleResult) -> dict[str, Any]:
    """Return the counts."""
    return {
        "rows_in_all": len(result.examples),
        "with_rationale_before": len(result.examples) - len(result.rows),
        "accepted": result.accepted,
        "rejected": len(result.rows) - result.accepted,
        "reasons": result.reasons,
    }


def row_summaries(result: RationaleResult) -> list[dict[str, Any]]:
    """Return what came of each row that had no rationale."""
    return [_row_summary(row) for row in result.rows]


def _row_summary(row: RowResult) -> dict[str, Any]:
    answers = [attempt.answer for attempt in row.attempts]
    return {
        "index": row.index,
        "id": row.id,
        "accepted": row.accepted,
        "reason": row.reason,
        "attempts": [
            {
                "temperature": attempt.sampling.temperature,
                "seed": attempt.sampling.seed,
                "stated": attempt.verdict.stated,
                "reason": attempt.verdict.reason,
                "settings_refused": list(attempt.answer.refused),
            }
            for attempt in row.attempts
        ],
        "tokens_in": _total([answer.tokens_in for answer in answers]),
        "tokens_out": _total([answer.tokens_out for answer in answers]),
    }


def _total(counts: Sequence[int | None]) -> int | None:
    """Add up; None, not 0, where nothing was counted."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
