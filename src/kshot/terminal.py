"""What the command line draws: progress bars, tables, and silence from the libraries below."""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kshot.progress import Advance

ERRORS = Console(stderr=True)  # progress and errors, so that standard output stays clean for results
RESULTS = Console()


class RichProgress:
    """Draws a bar for everything that takes longer than a moment."""

    def say(self, text: str) -> None:
        """Show one line."""
        ERRORS.print(f"[dim]{text}[/dim]", highlight=False)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Advance]:
        """Draw a bar while the block runs."""
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=ERRORS) as progress:
            task = progress.add_task(text, total=total)
            yield lambda units: progress.advance(task, units)


def quiet_libraries() -> None:
    """Let kshot speak alone: libraries below report errors only."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    for name in ("sentence_transformers", "httpx", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="peft|transformers|torch")


def selection_table(selection: Mapping[str, Any]) -> Table:
    """Draw every adapter with its scores and ranks, chosen ones marked."""
    robust = selection["method"] == "robust"
    columns = (
        "",
        "adapter",
        "accuracy",
        "reasoning ppl",
        "mean NLL",
        "RP",
        "RA",
        *(("loss",) if robust else ()),
    )
    table = Table(*columns, title="adapters on the shots")
    candidates = {row["name"] for row in selection["candidates"]}
    for row in selection["ranking"]:
        name = row["name"]
        mark = (
            "[bold green]expert[/]"
            if name in selection["experts"]
            else "candidate"
            if name in candidates
            else ""
        )
        table.add_row(
            mark,
            name,
            f"{row['accuracy']:.2f}",
            "inf" if row["reasoning_ppl"] is None else f"{row['reasoning_ppl']:.4g}",
            "inf" if row["mean_nll"] is None else f"{row['mean_nll']:.3f}",
            f"{row['rank_ppl']:g}",
            f"{row['rank_accuracy']:g}",
            *((f"{row['loss']:.2f} ± {row['stderr']:.2f}",) if robust else ()),
        )
    table.caption = Text("\n".join(_beside_the_ranking(selection)))
    return table


def _beside_the_ranking(selection: Mapping[str, Any]) -> Iterator[str]:
    """Say which adapters could not be scored, and which may have been trained on the task."""
    for name, reason in selection["failures"].items():
        yield f"{name} could not be scored: {reason}"
    for name, reason in selection["flagged"].items():
        yield f"{name} may have seen this task: {reason}"
    without = selection["without_flagged"]
    if without:
        yield f"without these the experts would be {', '.join(without['experts'])}"
    elif selection["flagged"]:
        yield "without these too few adapters are left"


def data_table(summary: Mapping[str, Any]) -> Table:
    """Draw where the selected rows come from."""
    table = Table("source", "rows kept", title=f"{summary['selected']} of {summary['pool_rows']} open rows")
    for source, count in summary["sources"].items():
        table.add_row(source, str(count))
    kept_out = len(summary["avoided"]) + summary.get("without_rationale", 0)
    table.caption = f"{kept_out} rows kept out, {len(summary['dropped'])} near-copies dropped"
    return table


def result_table(arms: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the arms with standard errors."""
    table = Table("arm", "accuracy", "stderr", "n", "p against tuned mixture", title="test rows")
    for arm in arms:
        p_value = arm["p_against_tuned_mixture"]
        bold = "[bold]" if arm["arm"] == "tuned_mixture" else ""
        table.add_row(
            bold + arm["title"],
            f"{bold}{arm['accuracy']:.3f}",
            "" if arm["stderr"] is None else f"± {arm['stderr']:.3f}",
            str(arm["n"]),
            "" if p_value is None else f"{p_value:.2g}",
        )
    return table


def bank_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the adapters of a bank."""
    table = Table("adapter", "r", "targets", "trained on", "rows", "licence")
    for entry in entries:
        rows = "" if entry["num_rows"] is None else str(entry["num_rows"])
        targets = ", ".join(entry["target_modules"])
        table.add_row(
            entry["name"], str(entry["r"]), targets, entry["trained_on"] or "?", rows, entry["licence"]
        )
    return table


def sync_table(outcomes: Sequence[Mapping[str, Any]]) -> Table:
    """Draw how many adapters a bank took in, and why it did not take the others."""
    counts = Counter(outcome["status"] for outcome in outcomes)
    table = Table("adapter", "", "why", title=f"{counts['added']} added, {counts['kept']} there before")
    for outcome in outcomes:
        if outcome["reason"]:
            table.add_row(outcome["reference"], outcome["status"], outcome["reason"])
    table.caption = f"{counts['refused']} refused, {counts['failed']} failed (see sync.json)"
    return table
