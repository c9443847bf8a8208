"""What the mixture does where its experts, each alone and untuned, agree or do not.

A row is `all right`, `all wrong` or `mixed`; only on mixed rows can a router choose. Each expert is a cell of
its own, `<task>/expert-<name>/seed<n>.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.arms import MIXTURE_ARM, ArmInfo
from suite.cell import Cell, read_cell
from suite.measure import right_of

EXPERT = "expert-"


def expert_cells(own: Cell, results: Path) -> list[Cell]:
    """Return a cell for each expert that a finished mixture chose; none where it is not finished."""
    found = read_cell(own.path(results)) or {}
    return [
        Cell(
            own.recipe,
            f"{EXPERT}{name}",
            ArmInfo(f"expert {name}", "suite.own.single:build_named", settings={"name": name}),
            own.seed,
            own.start,
        )
        for name in found.get("notes", {}).get("experts", [])
    ]


@dataclass(frozen=True)
class MixedCases:
    """Rows of one kind.

    Attributes:
        kind: `all right`, `mixed` or `all wrong`.
        num_rows: Of this kind.
        num_right: Of these rows, by arm.
    """

    kind: str
    num_rows: int
    num_right: Mapping[str, int]


def mixed_cases(
    experts: Sequence[Mapping[str, Any]], arms: Mapping[str, Mapping[str, Any]]
) -> list[MixedCases]:
    """Sort the rows by how many experts are right, and count what other arms do with them.

    Args:
        experts: Stored cells of the experts, of one task and seed.
        arms: Stored cells of other arms on the same rows.
    """
    right = [right_of(dict(cell)) for cell in experts]
    by_kind: dict[str, list[str]] = {"all right": [], "mixed": [], "all wrong": []}
    for name in right[0]:
        hits = sum(one[name] for one in right)
        kind = "all right" if hits == len(right) else "mixed" if hits else "all wrong"
        by_kind[kind].append(name)
    answered = {arm: right_of(dict(cell)) for arm, cell in arms.items()}
    return [
        MixedCases(kind, len(names), {arm: sum(one[name] for name in names) for arm, one in answered.items()})
        for kind, names in by_kind.items()
    ]


def cases_of(cells: Sequence[Mapping[str, Any]], seed: int) -> dict[str, list[MixedCases]]:
    """Return the mixed cases of every task whose experts were measured, by task."""
    found: dict[str, list[MixedCases]] = {}
    for task in sorted({cell["task"] for cell in cells}):
        here = {cell["arm"]: cell for cell in cells if cell["task"] == task and cell["seed"] == seed}
        own = here.get(MIXTURE_ARM)
        names = [f"{EXPERT}{name}" for name in own["notes"].get("experts", [])] if own else []
        if names and all(name in here for name in names):
            others = {arm: cell for arm, cell in here.items() if not arm.startswith(EXPERT)}
            found[task] = mixed_cases([here[name] for name in names], others)
    return found
