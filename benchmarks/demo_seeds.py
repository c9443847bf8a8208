"""The demo over three seeds of shots and test rows: the table in the README.

    python benchmarks/demo_seeds.py [FOLDER]     # runs are kept in FOLDER (runs/demo-seeds) and resumed

Writes benchmarks/results/demo_seeds.json.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from kshot.atomic import write_json
from kshot.init import write_task_folder
from kshot.pipeline import run
from kshot.terminal import RichProgress, quiet_libraries

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "demo_seeds.json"


def main(folder: Path) -> None:
    runs = [_run(folder / f"seed-{seed}", seed) for seed in SEEDS]
    arms = [row["arm"] for row in runs[0]["table"]]
    summary = {arm: _mean_over_seeds(arm, runs) for arm in arms}
    environment = json.loads((folder / "seed-0" / "run" / "environment.json").read_text())
    write_json(RESULTS, {"seeds": runs, "mean": summary, "environment": environment})
    for value in summary.values():
        print(f"{value['title']:<36} {value['accuracy']:.3f} ± {value['stderr_over_seeds']:.3f}")


def _run(folder: Path, seed: int) -> dict[str, object]:
    started = time.monotonic()
    if not folder.exists():
        write_task_folder(folder, seed=seed)
    result = run(folder / "task.yaml", folder / "run", progress=RichProgress())
    selection = json.loads((folder / "run" / "experts" / "selection.json").read_text())
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "experts": selection["experts"],
        "best_single": selection["best_single"],
        "table": result.results,
    }


def _mean_over_seeds(arm: str, runs: list[dict[str, object]]) -> dict[str, object]:
    rows = [row for one in runs for row in one["table"] if row["arm"] == arm]
    values = [row["accuracy"] for row in rows]
    return {
        "title": rows[0]["title"],
        "accuracy": statistics.mean(values),
        "stderr_over_seeds": statistics.stdev(values) / len(values) ** 0.5,
        "stderr_within": [row["stderr"] for row in rows],
        "p_against_tuned_mixture": [row["p_against_tuned_mixture"] for row in rows],
    }


if __name__ == "__main__":
    quiet_libraries()
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/demo-seeds"))
