"""The results as Markdown, from stored cells alone."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from suite.ablations import ABLATIONS
from suite.arms import ARMS, BASE_ARM, MIXTURE_ARM, OWN_ARM
from suite.cell import read_cell, read_cells
from suite.comparison import (
    Cells,
    Mean,
    Versus,
    accuracy_of,
    arrange,
    best_other,
    compare,
    mean_over_tasks,
    tasks_harmed,
    tasks_won,
)
from suite.mixed_cases import EXPERT, cases_of
from suite.recipe import TaskRecipe

NONE = "–"
METHODS = [name for name, info in ARMS.items() if not info.is_bound and name != MIXTURE_ARM]


def draw(results: Path, recipes: Mapping[str, TaskRecipe], ablations: Path) -> str:
    """Return the whole page.

    Args:
        results: Folder of the benchmark's cells.
        recipes: Tasks in their order.
        ablations: Folder with a folder of cells for each ablation.
    """
    stored = read_cells(results)
    found = arrange(stored)
    cells = {name: found[name] for name in recipes if name in found}
    parts = [
        "# Results",
        "Drawn by `python benchmarks/suite_table.py` from the cells in `benchmarks/results/suite/`; each "
        "holds its predictions and the command that gives them again. Accuracy in percent ± standard error.",
        *_accuracies(cells, recipes),
        *_against(cells),
        *_costs(cells),
        *_mixed(stored, recipes),
        *_ablations(ablations),
        *_failed(results),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracies(cells: Cells, recipes: Mapping[str, TaskRecipe]) -> list[str]:
    if not cells:
        return ["No cell is finished yet."]
    header = ["arm", *(recipes[task].title for task in cells), f"mean of {len(cells)}", "seeds"]
    rows = [_row_of(name, cells) for name in ARMS if any(name in arms for arms in cells.values())]
    sizes = [str(_num_rows(arms)) for arms in cells.values()]
    rows.append(["*test rows*", *sizes, "", ""])
    bounds = ", ".join(info.title for info in ARMS.values() if info.is_bound)
    return [
        "## Accuracy",
        _markdown(header, rows),
        f"In italics: bounds, which see what no method may ({bounds}). Means are of all tasks or not given.",
    ]


def _row_of(name: str, cells: Cells) -> list[str]:
    info = ARMS[name]
    found = {task: accuracy_of(arms[name]) for task, arms in cells.items() if name in arms}
    mean = mean_over_tasks(list(found.values())) if len(found) == len(cells) else None
    seeds = {one.num_seeds for one in found.values()}
    title = f"*{info.title}*" if info.is_bound else f"**{info.title}**" if name == OWN_ARM else info.title
    return [title, *(_percent(found.get(task)) for task in cells), _percent(mean), _span(seeds)]


def _against(cells: Cells) -> list[str]:
    rows = []
    for name, info in ARMS.items():
        versus = compare(cells, OWN_ARM, name) if name != OWN_ARM else None
        if versus is None:
            continue
        ahead = sum(one.value > 0 for one in versus.by_task.values())
        clear = sum(p < 0.05 for p in versus.p_by_task.values())
        rows.append(
            [
                f"*{info.title}*" if info.is_bound else info.title,
                _signed(versus),
                f"{100 * versus.low:+.1f} to {100 * versus.high:+.1f}",
                f"{ahead} of {len(versus.by_task)}",
                str(clear),
            ]
        )
    if not rows:
        return []
    header = ["other arm", "difference", "95 % (rows resampled)", "tasks ahead", "tasks with p < 0.05"]
    return ["## kshot against every other arm", _markdown(header, rows), _verdict(cells)]


def _verdict(cells: Cells) -> str:
    tasks = [task for task, arms in cells.items() if OWN_ARM in arms]
    won, harmed = tasks_won(cells, OWN_ARM, METHODS), tasks_harmed(cells, OWN_ARM, BASE_ARM)
    says = [
        f"Best of all methods on {len(won)} of {len(tasks)} tasks"
        + (f" ({', '.join(won)})." if won else "."),
        f"Below the base model by more than a standard error on {len(harmed)}"
        + (f" ({', '.join(harmed)})." if harmed else "."),
    ]
    best = best_other(cells, OWN_ARM, METHODS)
    versus = compare(cells, OWN_ARM, best) if best else None
    if best and versus:
        outside = "outside" if versus.difference > 2 * versus.stderr else "not outside"
        says.append(
            f"The best other arm is {ARMS[best].title}: {_signed(versus)}, {outside} two standard errors."
        )
    return " ".join(says) + (
        " Differences are paired: the same rows and seeds; p by McNemar's test of the first common seed."
    )


def _costs(cells: Cells) -> list[str]:
    rows = []
    for name, info in ARMS.items():
        found = [cell for arms in cells.values() for cell in arms.get(name, {}).values()]
        if found:
            rates = sorted(
                {cell["rate"]["chosen"] for cell in found if cell["rate"] and cell["trained_parameters"]}
            )
            rows.append(
                [
                    info.title,
                    f"{fmean(cell['trained_parameters'] for cell in found):,.0f}",
                    ", ".join(f"{rate:g}" for rate in rates) or NONE,
                    f"{fmean(cell['nll'] for cell in found):.3f}",
                    *(_seconds(found, part) for part in ("rate", "build", "measure")),
                ]
            )
    header = [
        "arm",
        "trained weights",
        "rates chosen",
        "NLL of test rows",
        "s to choose the rate",
        "s to build",
        "s to test",
    ]
    return ["## Cost", _markdown(header, rows), "Means over tasks and seeds."] if rows else []


def _mixed(stored: Sequence[Mapping[str, Any]], recipes: Mapping[str, TaskRecipe]) -> list[str]:
    seeds = sorted({cell["seed"] for cell in stored if cell["arm"].startswith(EXPERT)})
    rows = []
    for task, cases in (cases_of(stored, seeds[0]) if seeds else {}).items():
        for case in cases:
            shown = ("best_single", MIXTURE_ARM)
            right = [
                f"{100 * case.num_right[arm] / case.num_rows:.0f}"
                if case.num_rows and arm in case.num_right
                else NONE
                for arm in shown
            ]
            rows.append([recipes[task].title, case.kind, str(case.num_rows), *right])
    header = [
        "task",
        "the chosen experts alone are",
        "rows",
        "best single expert right, %",
        "mixture right, %",
    ]
    return ["## Where experts agree, and where not", _markdown(header, rows)] if rows else []


def _ablations(folder: Path) -> list[str]:
    parts = []
    for name, values in ABLATIONS.items():
        cells = arrange(read_cells(folder / name))
        shared = [task for task, arms in cells.items() if all(value in arms for value in values)]
        if not shared:
            continue
        rows = []
        for value in values:
            found = [accuracy_of(cells[task][value]) for task in shared]
            rows.append([value, *map(_percent, found), _percent(mean_over_tasks(found))])
        parts += [f"## Ablation: {name}", _markdown(["value", *shared, "mean"], rows)]
    return parts


def _failed(results: Path) -> list[str]:
    found = ((path, read_cell(path)) for path in sorted(results.glob("*/*/seed*.json")))
    lines = [
        f"- {path.parent.parent.name}, {path.parent.name}: {cell['error']}"
        for path, cell in found
        if cell and "error" in cell
    ]
    return ["## Failed", "\n".join(lines)] if lines else []


def _num_rows(arms: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> int:
    return min(int(cell["n"]) for seeds in arms.values() for cell in seeds.values())


def _seconds(cells: Iterable[Mapping[str, Any]], part: str) -> str:
    known = [cell["seconds"][part] for cell in cells if part in cell["seconds"]]
    return f"{fmean(known):.0f}" if known else NONE


def _percent(mean: Mean | None) -> str:
    if mean is None:
        return NONE
    stderr = "" if math.isnan(mean.stderr) else f" ± {100 * mean.stderr:.1f}"
    return f"{100 * mean.value:.1f}{stderr}"


def _signed(versus: Versus) -> str:
    return f"{100 * versus.difference:+.1f} ± {100 * versus.stderr:.1f}"


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
