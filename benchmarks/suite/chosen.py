"""An arm that is the best of others by folds of the shots: no test row is read to choose it."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from kshot.errors import ConfigError
from suite.arms import ARMS
from suite.cell import Cell, read_cell

KEPT = ("prepare", "measure")  # seconds of the chosen cell alone; the others are spent on every candidate


def candidates_of(cell: Cell) -> list[Cell]:
    """Return the cells that a choice is made of."""
    return [Cell(cell.recipe, name, ARMS[name], cell.seed, cell.start) for name in cell.info.chosen_from]


def best_by_folds(cell: Cell, results: Path, reads: Callable[[Cell], str]) -> dict[str, Any]:
    """Return the result of the candidate with the least NLL of held-out shots, the first of equals.

    Args:
        cell: Whose arm has `chosen_from`.
        results: Folder of the stored cells.
        reads: Gives the hash that a candidate's stored result must have.

    Raises:
        ConfigError: A candidate has no finished result, or was not judged on folds.
    """
    found = {one.arm: read_cell(one.path(results)) or {} for one in candidates_of(cell)}
    lost = [one.arm for one in candidates_of(cell) if found[one.arm].get("reads") != reads(one)]
    if lost:
        raise ConfigError(
            f"expected finished cells of {', '.join(found)}, got none of {lost[0]}: run it first"
        )
    held_out = {arm: _held_out_nll(stored) for arm, stored in found.items()}
    chosen = min(held_out, key=lambda arm: held_out[arm])
    result = found[chosen]
    spent = {
        part: sum(stored["seconds"].get(part, 0.0) for stored in found.values()) for part in ("rate", "build")
    }
    kept = {part: result["seconds"].get(part, 0.0) for part in KEPT}
    return {
        **{key: value for key, value in result.items() if key not in ("notes", "seconds")},
        "seconds": {name: round(value, 1) for name, value in (kept | spent).items()},
        "notes": {
            "chosen": chosen,
            "held_out_nll": {arm: nll if math.isfinite(nll) else None for arm, nll in held_out.items()},
            "of_the_chosen": result["notes"],
        },
    }


def _held_out_nll(stored: dict[str, Any]) -> float:
    """Return the mean over folds at the rate that the cell was run with; infinite where it diverged."""
    rate = stored["rate"] or {"tried": []}
    at_rate = [trial["nll"] for trial in rate["tried"] if trial["rate"] == rate["chosen"]]
    if not at_rate:
        raise ConfigError(
            f"expected {stored['task']}, {stored['arm']} to be judged on folds of the shots, got no trial: "
            "a single shot cannot be held out"
        )
    return fmean(math.inf if value is None else value for value in at_rate[0])
