"""Run cells one by one; a finished one is skipped, a failing one is written down and stops no other."""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kshot.atomic import write_text
from kshot.pipeline.environment import describe_environment
from kshot.run_folder import digest
from suite.arm import Setting
from suite.budget import RATES, TRIAL_ROWS
from suite.cell import Cell, read_cell, write_cell
from suite.chosen import best_by_folds, candidates_of
from suite.learning_rate import choose_rate
from suite.measure import measure
from suite.shared_work import SharedWork

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunPlan:
    """How cells are run.

    Attributes:
        results: Folder of the stored cells.
        rates: Grid of learning rates.
        trial_epochs: Epochs of a trial of a rate; an arm's own where absent.
        command: What to type to run it again.
    """

    results: Path
    rates: Sequence[float] = RATES
    trial_epochs: float | None = None
    rates_of_seed: int | None = None
    command: str = ""


def run_cells(cells: Iterable[Cell], shared: SharedWork, plan: RunPlan, say: Say = print) -> int:
    """Run what is not there yet.

    Returns:
        The number of cells that failed.
    """
    failed = 0
    for cell in cells:
        path = cell.path(plan.results)
        try:
            reads = reads_of(cell, shared, plan)
            if is_finished(path, reads):
                continue
            result = run_cell(cell, shared, plan)
        except Exception as error:  # whatever an arm raises: the other cells go on
            failed += 1
            result = {"error": f"{type(error).__name__}: {error}"}
            _keep_traceback(cell, shared.work)
            reads = None
        write_cell(path, result | _identity(cell, plan) | {"reads": reads})
        say(f"{cell}  {_in_short(result)}")
    return failed


def is_finished(path: Path, reads: str) -> bool:
    """Whether a stored cell is the result of what would be run now."""
    found = read_cell(path)
    return found is not None and "error" not in found and found.get("reads") == reads


def reads_of(cell: Cell, shared: SharedWork, plan: RunPlan) -> str:
    """Return the hash of all that a result depends on but the code."""
    if cell.info.chosen_from:
        return digest([reads_of(one, shared, plan) for one in candidates_of(cell)])
    rates = [list(plan.rates), plan.trial_epochs, _rate_of_another_seed(cell, plan)]
    return digest([_trained_on(cell, shared), rates, _test_ids(cell, shared)])


def _rate_of_another_seed(cell: Cell, plan: RunPlan) -> float | None:
    if plan.rates_of_seed in (None, cell.seed) or not cell.info.is_tuned:
        return None
    found = read_cell(replace(cell, seed=plan.rates_of_seed).path(plan.results)) or {}
    return (found.get("rate") or {}).get("chosen")


def _trained_on(cell: Cell, shared: SharedWork) -> str:
    """Return the hash of what a model is made from; not of the test rows, unless it sees them."""
    info = cell.info
    return digest(
        [
            shared.base,
            shared.dtype,
            [[adapter.name, adapter.digest] for adapter in shared.bank_of(cell)],
            shared.open_rows.contents if cell.start.data.budget else None,
            [shot.to_row() for shot in shared.shots_of(cell)],
            cell.recipe.model_dump(mode="json", exclude={"hub", "title"}),
            shared.training.model_dump(mode="json"),
            cell.start.model_dump(mode="json"),
            [info.function, info.sees, None if info.settings is None else dict(info.settings)],
            _test_ids(cell, shared) if info.sees == "test" else None,
            cell.seed,
        ]
    )


def _test_ids(cell: Cell, shared: SharedWork) -> list[str]:
    return [row.id for row in shared.test_of(cell)]


def run_cell(cell: Cell, shared: SharedWork, plan: RunPlan) -> dict[str, Any]:
    """Build a cell's model at its best rate and measure it, or choose among finished cells.

    Whatever the arm raises is passed on.
    """
    if cell.info.chosen_from:
        return best_by_folds(cell, plan.results, lambda one: reads_of(one, shared, plan))
    arm, times = cell.info.load(), {}
    started = time.monotonic()
    setting = shared.setting(cell)
    times["prepare"] = time.monotonic() - started
    rate: dict[str, Any] | None = None
    if cell.info.is_tuned or cell.info.is_judged:
        started = time.monotonic()
        setting, rate = _at_best_rate(cell, setting, shared, plan)
        times["rate"] = time.monotonic() - started
    started = time.monotonic()
    built = arm(setting)
    times["build"] = time.monotonic() - started
    started = time.monotonic()
    setting.lm.model = built.model
    found = measure(setting.lm, shared.test_of(cell), cell.recipe)
    times["measure"] = time.monotonic() - started
    return {
        **found,
        "seconds": {name: round(value, 1) for name, value in times.items()},
        "trained_parameters": built.trained_parameters,
        "notes": dict(built.notes),
        "rate": rate,
        "num_shots": len(setting.shots),
        "num_rows": len(setting.rows),
        "training": setting.training.model_dump(mode="json"),
        "base": shared.base,
        "dtype": shared.dtype,
        "environment": describe_environment(),
    }


def _at_best_rate(
    cell: Cell, setting: Setting, shared: SharedWork, plan: RunPlan
) -> tuple[Setting, dict[str, Any]]:
    known = _rate_of_another_seed(cell, plan) if cell.info.is_tuned else setting.training.learning_rate
    store = shared.store("trials", cell)
    chosen, trials = choose_rate(
        cell.info.load(),
        setting,
        shared.fresh_model,
        plan.rates if known is None else [known],
        store=store,
        key=_trained_on(cell, shared),
        max_rows=min(TRIAL_ROWS, cell.start.data.budget),
        epochs=plan.trial_epochs,
        is_judged=cell.info.is_judged,
    )
    training = setting.training.model_copy(update={"learning_rate": chosen})
    tried = [trial.to_json() for trial in trials]
    of_seed = {} if known is None else {"of_seed": plan.rates_of_seed}
    return replace(setting, training=training), {"chosen": chosen, "tried": tried, **of_seed}


def _identity(cell: Cell, plan: RunPlan) -> dict[str, Any]:
    return {
        "task": cell.recipe.name,
        "arm": cell.arm,
        "title": cell.info.title,
        "is_bound": cell.info.is_bound,
        "is_tuned": cell.info.is_tuned,
        "seed": cell.seed,
        "start": cell.start.model_dump(mode="json", exclude_defaults=True),
        "command": plan.command,
    }


def _keep_traceback(cell: Cell, work: Path) -> None:
    folder = work / "errors"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{cell.recipe.name}-{cell.arm}-seed{cell.seed}.txt", traceback.format_exc())


def _in_short(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"failed: {result['error'][:150]}"
    stderr = f" ± {result['stderr']:.3f}" if result["stderr"] is not None else ""
    rate = f"  rate {result['rate']['chosen']:g}" if result["rate"] and result["trained_parameters"] else ""
    seconds = sum(result["seconds"].values())
    return f"{result['accuracy']:.3f}{stderr}  NLL {result['nll']:.3f}{rate}  {seconds:.0f} s"
