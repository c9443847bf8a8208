"""Commands about one task: a folder that runs, the stages of a run, its report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from kshot.cli.dry_run import forecast_table
from kshot.cli.engine import Address, EngineChoice, EngineOption, Workers
from kshot.cli.printing import AsJson, print_result
from kshot.corpus import DatasetForm
from kshot.init import write_task_folder
from kshot.mixture.mean_routing import ConstantGatesLoss
from kshot.pipeline import (
    DataExport,
    Exported,
    Goal,
    Merged,
    RunResult,
    export_expert,
    export_gguf,
    export_merged,
    run,
)
from kshot.pipeline.export_card import Form
from kshot.pipeline.forecast import forecast_run
from kshot.report import COMPARISON, write_comparison, write_report
from kshot.run_folder import DATA_SUMMARY, ORDER, RESULTS, SELECTION, RunFolder
from kshot.terminal import RESULTS as OUTPUT
from kshot.terminal import RichProgress, data_table, order_table, result_table, selection_table

TASK = typer.Typer()

TaskFile = Annotated[Path, typer.Argument(help="The task file (YAML).")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="The run folder; a killed run goes on where it stood.")
]
Seed = Annotated[int | None, typer.Option(help="In place of the task file's seed.")]
AllowUnsafe = Annotated[
    bool,
    typer.Option(
        "--allow-unsafe-code",
        help="Scorers code and sql: where bubblewrap is absent, run what models write with your own rights.",
    ),
]


@TASK.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="Made new; must not exist.")],
    bank: Annotated[Path | None, typer.Option(help="A bank folder; the bundled one by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of shots, test rows and pool.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a task folder that runs: shots, test rows, a pool and task.yaml.

    Example: kshot init my-task && kshot run my-task/task.yaml --out my-task/run
    """
    task_file = write_task_folder(folder, bank=bank, seed=seed)
    if as_json:
        print_result({"task": str(task_file)}, as_json)
        return
    typer.echo(f"wrote {task_file}; next: kshot run {task_file} --out {folder / 'run'}")


@TASK.command("run")
def run_command(
    task: TaskFile,
    out: Out,
    seed: Seed = None,
    allow_unsafe_code: AllowUnsafe = False,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would run, how long, with how much memory and disk."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do it all: experts, data, training, evaluation, report.

    Example: kshot run task.yaml --out runs/my-task
    """
    if dry_run:
        forecast = forecast_run(task, out, seed=seed, progress=RichProgress())
        print_result(forecast.to_json() if as_json else forecast_table(forecast), as_json)
        return
    result = _run(task, out, "report", seed, allow_unsafe_code, EngineChoice(engine, address, workers))
    _show(result, as_json, (SELECTION, DATA_SUMMARY, RESULTS))
    if not as_json:
        typer.echo(f"report: {result.report}\n{_handed_over(result)}")


@TASK.command("screen")
def screen_command(task: TaskFile, out: Out, seed: Seed = None, as_json: AsJson = False) -> None:
    """Order the bank by what is foretold of the loss on the shots, without running an adapter.

    'kshot select' and 'kshot run' do so unasked where there are too many adapters to try on a single shot
    (16 times experts.screen at 16 shots), and take this order if it is there.

    Example: kshot screen task.yaml --out runs/my-task
    """
    _show(_run(task, out, "screening", seed), as_json, (ORDER,))


@TASK.command("select")
def select_command(
    task: TaskFile,
    out: Out,
    seed: Seed = None,
    allow_unsafe_code: AllowUnsafe = False,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Score every adapter on the shots and pick the experts.

    Example: kshot select task.yaml --out runs/my-task --engine ray --workers 2
    """
    result = _run(task, out, "experts", seed, allow_unsafe_code, EngineChoice(engine, address, workers))
    _show(result, as_json, (SELECTION,))


@TASK.command("augment")
def augment_command(
    task: TaskFile,
    out: Out,
    seed: Seed = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the rows for other trainers: .jsonl or .parquet.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Put the rows into this Hub data set: owner/name.")] = None,
    form: Annotated[
        DatasetForm | None, typer.Option(help="Of the rows written or pushed; alpaca where absent.")
    ] = None,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Pick the open rows that join the shots, after the experts.

    Prints what each source gave, with its most relevant row; data/dropped.jsonl of the run says why others
    were left out, and which kept row, shot or test row each collided with.

    Example: kshot augment task.yaml --out runs/my-task --write chosen.parquet --form messages
    """
    export = DataExport(write=write, push=push, form=form)
    result = _run(task, out, "data", seed, engine=EngineChoice(engine, address, workers))
    done = export.carry_out(RunFolder.existing(result.folder))
    _show(result, as_json, (DATA_SUMMARY,), done)
    if not as_json:
        for what, where in done.items():
            typer.echo(f"{what}: {where}")


@TASK.command("train")
def train_command(
    task: TaskFile,
    out: Out,
    seed: Seed = None,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Tune the mixture, after experts and data; compare it on folds of the shots with what it is made of.

    Example: kshot train task.yaml --out runs/my-task
    """
    result = _run(task, out, "training", seed, engine=EngineChoice(engine, address, workers))
    if as_json:
        print_result({"expert": result.expert and str(result.expert)}, as_json)
    else:
        typer.echo(_handed_over(result))


@TASK.command("eval")
def eval_command(
    task: TaskFile,
    out: Out,
    seed: Seed = None,
    allow_unsafe_code: AllowUnsafe = False,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Measure every arm on the test rows, after training.

    Example: kshot eval task.yaml --out runs/my-task --json
    """
    result = _run(task, out, "eval", seed, allow_unsafe_code, EngineChoice(engine, address, workers))
    _show(result, as_json, (RESULTS,))


_EXPORTS: Mapping[Form, Callable[..., Exported | Merged]] = MappingProxyType(
    {"lora": export_expert, "merged": export_merged, "gguf": export_gguf}
)


@TASK.command("export")
def export_command(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where it is written; made new.")],
    form: Annotated[
        Form,
        typer.Option(
            help="lora: a PEFT folder, for vLLM and others; merged: a full model; gguf: a LoRA for llama.cpp."
        ),
    ] = "lora",
    as_json: AsJson = False,
) -> None:
    """Write the tuned mixture for other tools, and say what it costs that they know no router.

    Example: kshot export runs/my-task --out plain-lora
    """
    exported = _EXPORTS[form](folder, out, progress=RichProgress())
    found: dict[str, Any] = {"folder": str(exported.folder), "loss": exported.loss}
    if isinstance(exported, Merged):
        found["nll"] = dict(zip(("mixture", "merged"), exported.nll, strict=True))
    if as_json:
        print_result(found, as_json)
        return
    typer.echo(f"{form}: {exported.folder}")
    if exported.loss:
        typer.echo(f"mean routing in place of the router: {ConstantGatesLoss(**exported.loss)}")
    if isinstance(exported, Merged):
        before, after = exported.nll
        typer.echo(f"merged: NLL {before:.4f} -> {after:.4f} nats a token on the training rows")


@TASK.command("report")
def report_command(
    folders: Annotated[list[Path], typer.Argument(help="A run folder; several are compared.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help=f"The page: report.html in the run folder, {COMPARISON} here for several runs.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write report.html of a run again, or one page that compares several runs.

    Example: kshot report runs/my-task
    Example: kshot report runs/seed-0 runs/seed-1 --out seeds.html
    """
    runs = [RunFolder.existing(folder) for folder in folders]
    report = write_comparison(runs, out or Path(COMPARISON)) if len(runs) > 1 else write_report(runs[0], out)
    if as_json:
        print_result({"report": str(report)}, as_json)
    else:
        typer.echo(f"report: {report}")


def _run(
    task: Path,
    out: Path,
    until: Goal,
    seed: int | None,
    allow_unsafe_code: bool = False,
    engine: EngineChoice = EngineChoice(),  # noqa: B008 - nothing changes it
) -> RunResult:
    progress = RichProgress()
    with engine.open(progress) as opened:
        return run(
            task,
            out,
            until=until,
            seed=seed,
            allow_unsafe_code=allow_unsafe_code,
            engine=opened,
            progress=progress,
        )


def _handed_over(result: RunResult) -> str:
    expert = result.expert
    return f"expert: {expert}" if expert else "expert: none; on the shots the base model did best"


def _show(
    result: RunResult, as_json: bool, parts: tuple[str, ...], beside: Mapping[str, str] = MappingProxyType({})
) -> None:
    folder = RunFolder.existing(result.folder)
    found: dict[str, Any] = dict(beside)
    if ORDER in parts:
        found["screening"] = folder.read_json("screening", ORDER)
    if SELECTION in parts:
        found["selection"] = folder.read_json("experts", SELECTION)
    if DATA_SUMMARY in parts:
        found["data"] = folder.read_json("data", DATA_SUMMARY)
    if RESULTS in parts:
        found["results"] = result.results
    if as_json:
        print_result(found, as_json)
        return
    if "screening" in found:
        OUTPUT.print(order_table(found["screening"]))
    if "selection" in found:
        OUTPUT.print(selection_table(found["selection"]))
        OUTPUT.print(found["selection"]["why"], highlight=False)
    if "data" in found:
        OUTPUT.print(data_table(found["data"]))
    if found.get("results"):
        OUTPUT.print(result_table(found["results"]))
