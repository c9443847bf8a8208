"""Run stored cells again and see whether they come out the same."""

from collections.abc import Iterable
from typing import Any

from suite.cell import Cell, read_cell
from suite.runner import RunPlan, Say, run_cell
from suite.shared_work import SharedWork

SAME = "same predictions"
NLL_TOLERANCE = 1e-3  # nats a token: stored with four digits


def reproduce_cells(cells: Iterable[Cell], shared: SharedWork, plan: RunPlan, say: Say = print) -> int:
    """Run stored cells again and compare: same answers, and likelihoods within `NLL_TOLERANCE`.

    Returns:
        The number of cells that are not stored, fail, or come out otherwise.
    """
    otherwise = 0
    for cell in cells:
        stored = read_cell(cell.path(plan.results))
        if stored is None or "error" in stored:
            said = "is not stored"
        else:
            said = _difference(stored, run_cell(cell, shared, plan))
        otherwise += said != SAME
        say(f"{cell}  {said}")
    return otherwise


def _difference(stored: dict[str, Any], again: dict[str, Any]) -> str:
    old, new = stored["predictions"], again["predictions"]
    texts = [key for key in ("id", "correct", "taken", "answer") if old.get(key) != new.get(key)]
    if texts:
        return f"differs in {', '.join(texts)}"
    far = max((abs(a - b) for a, b in zip(old["nll"], new["nll"], strict=True)), default=0.0)
    return SAME if far <= NLL_TOLERANCE else f"same answers, NLL differs by up to {far:.4f}"
