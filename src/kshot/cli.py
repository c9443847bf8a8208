"""The commands: parse, call, print. Every mistake is one line on stderr and exit code 2."""

import json
import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer

from kshot.bank import Bank, build_bank
from kshot.errors import KshotError
from kshot.init import write_task_folder
from kshot.pipeline import Goal, RunResult, run
from kshot.report import write_report
from kshot.run_folder import DATA_SUMMARY, RESULTS, SELECTION, RunFolder
from kshot.terminal import (
    ERRORS,
    RichProgress,
    bank_table,
    data_table,
    quiet_libraries,
    result_table,
    selection_table,
)
from kshot.terminal import (
    RESULTS as OUTPUT,
)

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
bank_app = typer.Typer(no_args_is_help=True, help="List, add, verify and build banks of adapters.")
app.add_typer(bank_app, name="bank")

TaskFile = Annotated[Path, typer.Argument(help="The task file (YAML).")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="The run folder; a killed run goes on where it stood.")
]
Seed = Annotated[int | None, typer.Option(help="In place of the task file's seed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Turn a few labelled examples, a bank of LoRA adapters and open data into one task expert."""
    if version:
        typer.echo(installed_version("kshot"))
        raise typer.Exit


@app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="Made new; must not exist.")],
    bank: Annotated[Path | None, typer.Option(help="A bank folder; the bundled one by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of shots, test rows and pool.")] = 0,
) -> None:
    """Write a task folder that runs: shots, test rows, a pool and task.yaml.

    Example: kshot init my-task && kshot run my-task/task.yaml --out my-task/run
    """
    task_file = write_task_folder(folder, bank=bank, seed=seed)
    typer.echo(f"wrote {task_file}; next: kshot run {task_file} --out {folder / 'run'}")


@app.command("run")
def run_command(task: TaskFile, out: Out, seed: Seed = None, as_json: AsJson = False) -> None:
    """Do it all: experts, data, training, evaluation, report.

    Example: kshot run task.yaml --out runs/my-task
    """
    result = _run(task, out, "report", seed)
    _show(result, as_json, (SELECTION, DATA_SUMMARY, RESULTS))
    if not as_json:
        typer.echo(f"report: {result.report}\nexpert: {result.expert}")


@app.command("select")
def select_command(task: TaskFile, out: Out, seed: Seed = None, as_json: AsJson = False) -> None:
    """Score every adapter on the shots and pick the experts.

    Example: kshot select task.yaml --out runs/my-task
    """
    _show(_run(task, out, "experts", seed), as_json, (SELECTION,))


@app.command("augment")
def augment_command(task: TaskFile, out: Out, seed: Seed = None, as_json: AsJson = False) -> None:
    """Pick the open rows that join the shots, after the experts.

    Example: kshot augment task.yaml --out runs/my-task
    """
    _show(_run(task, out, "data", seed), as_json, (DATA_SUMMARY,))


@app.command("train")
def train_command(task: TaskFile, out: Out, seed: Seed = None) -> None:
    """Tune the mixture, after experts and data.

    Example: kshot train task.yaml --out runs/my-task
    """
    typer.echo(f"expert: {_run(task, out, 'training', seed).expert}")


@app.command("eval")
def eval_command(task: TaskFile, out: Out, seed: Seed = None, as_json: AsJson = False) -> None:
    """Measure every arm on the test rows, after training.

    Example: kshot eval task.yaml --out runs/my-task --json
    """
    _show(_run(task, out, "eval", seed), as_json, (RESULTS,))


@app.command("report")
def report_command(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html of a run again.

    Example: kshot report runs/my-task
    """
    if not folder.is_dir():
        raise KshotError(f"expected a run folder at {folder}, found none; make one with 'kshot run'")
    typer.echo(f"report: {write_report(RunFolder(folder))}")


@bank_app.command("list")
def bank_list(folder: Annotated[Path, typer.Argument(help="A bank.")], as_json: AsJson = False) -> None:
    """Show the adapters of a bank.

    Example: kshot bank list banks/smollm2-135m
    """
    entries = [adapter.entry.model_dump(mode="json") for adapter in Bank.open(folder)]
    _print(entries if as_json else bank_table(entries), as_json)


@bank_app.command("add")
def bank_add(
    folder: Annotated[Path, typer.Argument(help="A bank; made if it is not there.")],
    source: Annotated[str, typer.Argument(help="A PEFT LoRA folder or a Hub id.")],
    name: Annotated[str | None, typer.Option(help="Its name in the bank.")] = None,
    licence: Annotated[str, typer.Option(help="Of its weights.")] = "unknown",
) -> None:
    """Copy an adapter into a bank.

    Example: kshot bank add my-bank path/to/adapter --name sql --licence mit
    """
    adapter = Bank.create(folder).add(source, name=name, licence=licence)
    typer.echo(f"added {adapter.name}: r = {adapter.entry.r}, {', '.join(adapter.entry.target_modules)}")


@bank_app.command("verify")
def bank_verify(folder: Annotated[Path, typer.Argument(help="A bank.")], as_json: AsJson = False) -> None:
    """Check every adapter of a bank: checksum, shapes, finite weights.

    Example: kshot bank verify banks/smollm2-135m
    """
    found = Bank.open(folder).verify()
    broken = {name: problem for name, problem in found.items() if problem}
    if as_json:
        _print(found, as_json)
    else:
        typer.echo("\n".join(broken.values()) if broken else f"{len(found)} adapters are sound")
    raise typer.Exit(2 if broken else 0)


@bank_app.command("build")
def bank_build(
    recipe: Annotated[Path, typer.Argument(help="A bank recipe (YAML).")],
    folder: Annotated[Path, typer.Argument(help="The bank; adapters trained before are kept.")],
) -> None:
    """Train the adapters of a recipe, one at a time; a killed build goes on with the next.

    Example: KSHOT_DATA=data kshot bank build recipes/smollm2-135m.yaml banks/smollm2-135m
    """
    build_bank(recipe, folder, report=typer.echo)


def _run(task: Path, out: Path, until: Goal, seed: int | None) -> RunResult:
    return run(task, out, until=until, seed=seed, progress=RichProgress())


def _show(result: RunResult, as_json: bool, parts: tuple[str, ...]) -> None:
    folder = RunFolder(result.folder)
    found: dict[str, Any] = {}
    if SELECTION in parts:
        found["selection"] = folder.read_json("experts", SELECTION)
    if DATA_SUMMARY in parts:
        found["data"] = folder.read_json("data", DATA_SUMMARY)
    if RESULTS in parts:
        found["results"] = result.results
    if as_json:
        _print(found, as_json)
        return
    if "selection" in found:
        OUTPUT.print(selection_table(found["selection"]))
        OUTPUT.print(found["selection"]["why"], highlight=False)
    if "data" in found:
        OUTPUT.print(data_table(found["data"]))
    if found.get("results"):
        OUTPUT.print(result_table(found["results"]))


def _print(value: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        OUTPUT.print(value)


def main() -> None:
    """Run a command; turn every failure into one line and an exit code."""
    quiet_libraries()
    try:
        app()
    except KshotError as error:
        ERRORS.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        ERRORS.print("stopped; the same command goes on where it stood")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("KSHOT_DEBUG"):
            raise
        ERRORS.print(
            f"internal error: {type(error).__name__}: {error}; "
            "set KSHOT_DEBUG=1 for the traceback and report it",
            style="bold red", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
        sys.exit(1)
