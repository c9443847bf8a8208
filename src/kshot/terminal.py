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
from rich.table import Column, Table
from rich.text import Text

from kshot.progress import Advance

ERRORS = Console(stderr=True)  # beside progress, so that standard output stays clean for results
PROGRESS = Console(stderr=True)  # of its own, to be silenced by --quiet
RESULTS = Console()
LEFT_OUT = {
    "exact_match": "ask what a shot, a test row or a benchmark asks",
    "near_match": "hold most of such a question",
    "near_copy": "near-copies of kept rows",
    "source_full": "of sources that gave their share",
    "too_short": "too short",
    "too_long": "too long",
}
CHOSEN = "*"  # behind the name of the arm that a run hands over
ORDER_SHOWN = 20  # adapters of an ordered bank
FAILURES_SHOWN = 5  # of those that could not be ordered


class RichProgress:
    """Draws a bar for everything that takes longer than a moment."""

    def say(self, text: str) -> None:
        """Show one line."""
        PROGRESS.print(text, style="dim", markup=False, highlight=False)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Advance]:
        """Draw a bar while the block runs."""
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=PROGRESS) as progress:
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


def order_table(screening: Mapping[str, Any]) -> Table:
    """Draw the head of a bank's order."""
    order, failures = screening["order"], screening["failures"]
    table = Table("", "adapter", "change of the loss, nats", "slope", title="adapters, as foretold")
    for place, row in enumerate(order[:ORDER_SHOWN], start=1):
        table.add_row(str(place), row["name"], f"{row['change']:+.4g}", f"{row['slope']:+.4g}")
    notes = [f"the first of {len(order)}"] if len(order) > ORDER_SHOWN else []
    notes += [
        f"{name} could not be ordered: {reason}" for name, reason in list(failures.items())[:FAILURES_SHOWN]
    ]
    if len(failures) > FAILURES_SHOWN:
        notes.append(f"{len(failures) - FAILURES_SHOWN} more could not be ordered")
    table.caption = Text("\n".join(notes))
    return table


def selection_table(selection: Mapping[str, Any]) -> Table:
    """Draw every adapter with its scores and ranks, chosen ones marked."""
    robust = selection["method"] == "robust"
    both_orders = any(row["answer_first_ppl"] is not None for row in selection["ranking"])
    columns = (
        "",
        "adapter",
        "accuracy",
        "reasoning ppl",
        *(("answer first",) if both_orders else ()),
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
            _number(row["reasoning_ppl"], ".4g"),
            *((_number(row["answer_first_ppl"], ".4g"),) if both_orders else ()),
            _number(row["mean_nll"], ".3f"),
            f"{row['rank_ppl']:g}",
            f"{row['rank_accuracy']:g}",
            *((f"{row['loss']:.2f} ± {row['stderr']:.2f}",) if robust else ()),
        )
    table.caption = Text("\n".join(_beside_the_ranking(selection)))
    return table


def _number(value: float | None, form: str) -> str:
    return "inf" if value is None else f"{value:{form}}"


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
    """Draw where the selected rows come from, and why others were left out."""
    table = Table(
        "source",
        Column("rows kept", justify="right"),
        Column("share", justify="right"),
        Column("mean relevance", justify="right"),
        "most relevant row",
        title=f"{summary['selected']} of {summary['pool_rows']} open rows",
    )
    for one in summary["by_source"]:
        table.add_row(
            Text(one["source"]),
            str(one["rows"]),
            f"{one['share']:.0%}",
            f"{one['mean_relevance']:.3f}",
            Text(one["example"]),
        )
    table.caption = "\n".join(_left_out(summary))
    return table


def _left_out(summary: Mapping[str, Any]) -> Iterator[str]:
    """Count the rows that were left out, by reason."""
    for reason, count in summary.get("counts", {}).items():
        yield f"{count} {LEFT_OUT.get(reason, reason)}"
    for key, what in (("without_rationale", "without a rationale"), ("without_vector", "without a vector")):
        if summary.get(key):
            yield f"{summary[key]} {what}"


def result_table(arms: Sequence[Mapping[str, Any]], choice: Mapping[str, Any] | None = None) -> Table:
    """Draw the arms with standard errors, and mark the one that is handed over, with the reason."""
    table = Table("arm", "accuracy", "stderr", "n", "p against tuned mixture", title="test rows")
    for arm in arms:
        p_value = arm["p_against_tuned_mixture"]
        bold = "[bold]" if arm["arm"] == "tuned_mixture" else ""
        table.add_row(
            bold + arm["title"] + (f" {CHOSEN}" if choice and arm["arm"] == choice["chosen"] else ""),
            f"{bold}{arm['accuracy']:.3f}",
            "" if arm["stderr"] is None else f"± {arm['stderr']:.3f}",
            str(arm["n"]),
            "" if p_value is None else f"{p_value:.2g}",
        )
    if choice:
        table.caption = Text(f"{CHOSEN} handed over: {choice['reason']}")
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


def pool_table(info: Mapping[str, Any]) -> Table:
    """Draw the sources of a pool, and say what was skipped and which encoders embedded it."""
    table = Table("source", "rows", "skipped", title=f"{info['rows']:,} rows")
    skipped: dict[str, list[str]] = {}
    for one in info["skipped"]:
        skipped.setdefault(one["source"], []).append(f"{one['count']:,} {one['reason']}")
    for source in dict.fromkeys([*info["sources"], *skipped]):
        rows = info["sources"].get(source, 0)
        table.add_row(source, f"{rows:,}", ", ".join(skipped.get(source, [])))
    told = [f"{one['source']}: {one['reason']}: {one['first']}" for one in info["skipped"] if one["first"]]
    for name, shards in info["encoders"].items():
        told.append(f"embedded with {name}" + ("" if shards == info["shards"] else ", not to the end"))
    table.caption = Text("\n".join(told))
    return table


def found_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """Draw rows that a search found, each cut to what tells them apart."""
    table = Table("cosine", "source", "request", "output")
    for row in found:
        example = row["example"]
        request = " ".join(f"{example['instruction']} {example['input']}".split())
        shown = (text if len(text) <= 160 else text[:159] + "…" for text in (request, example["output"]))
        table.add_row(f"{row['cosine']:.3f}", row["source"], *map(Text, shown))
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
