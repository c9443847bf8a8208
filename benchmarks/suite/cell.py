"""One cell of the benchmark: a task, an arm and a seed of shots, and the file of its result."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kshot.atomic import write_text
from suite.arms import ArmInfo
from suite.budget import Start
from suite.recipe import TaskRecipe


@dataclass(frozen=True)
class Cell:
    """What is run and measured at once.

    Attributes:
        recipe: Of the task.
        arm: Name of the arm; its folder.
        info: The arm.
        seed: Of the shots.
        start: What the arm starts from.
    """

    recipe: TaskRecipe
    arm: str
    info: ArmInfo
    seed: int
    start: Start = field(default_factory=Start)

    def path(self, results: Path) -> Path:
        """Return the file of its result."""
        return results / self.recipe.name / self.arm / f"seed{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.recipe.name:<20} {self.arm:<20} seed {self.seed}"


def read_cell(path: Path) -> dict[str, Any] | None:
    """Return a stored result, None where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_cell(path: Path, result: dict[str, Any]) -> None:
    """Write a result; predictions by column on a line each, so that the file stays small.

    Raises:
        RunFolderError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'  "{key}": {_line(result[key])}' for key in sorted(result) if key != "predictions"]
    if "predictions" in result:
        columns = result["predictions"]
        inside = ",\n".join(f'    "{key}": {_line(columns[key])}' for key in sorted(columns))
        lines.append(f'  "predictions": {{\n{inside}\n  }}')
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_cells(results: Path) -> list[dict[str, Any]]:
    """Return every finished cell below a folder, in the order of task, arm and seed; errors are left out."""
    found = (read_cell(path) for path in sorted(results.glob("*/*/seed*.json")))
    return [cell for cell in found if cell is not None and "error" not in cell]


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
