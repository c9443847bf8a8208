"""Commands that run a task, all of it or up to a stage."""

from pathlib import Path
from typing import Annotated

import typer

from kshot.cli.dry_run import forecast_table
from kshot.cli.engine import Address, EngineChoice, EngineOption, Workers
from kshot.cli.printing import AsJson, print_result, print_run
from kshot.corpus import DatasetForm
from kshot.pipeline import DataExport, Goal, RunResult, run
from kshot.pipeline.forecast import forecast_run
from kshot.run_folder import DATA_SUMMARY, ORDER, RESULTS, SELECTION, RunFolder
from kshot.terminal import RichProgress

STAGES = typer.Typer()

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


@STAGES.command("run")
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
    print_run(result, as_json, (SELECTION, DATA_SUMMARY, RESULTS))
    if not as_json:
        typer.echo(f"report: {result.report}\n{_handed_over(result)}")


@STAGES.command("screen")
def screen_command(task: TaskFile, out: Out, seed: Seed = None, as_json: AsJson = False) -> None:
    """Order the bank by what is foretold of the loss on the shots, without running an adapter.

    'kshot select' and 'kshot run' do so unasked where there are too many adapters to try on a single shot
    (16 times experts.screen at 16 shots), and take this order if it is there.

    Example: kshot screen task.yaml --out runs/my-task
    """
    print_run(_run(task, out, "screening", seed), as_json, (ORDER,))


@STAGES.command("select")
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
    print_run(result, as_json, (SELECTION,))


@STAGES.command("augment")
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
    print_run(result, as_json, (DATA_SUMMARY,), done)
    if not as_json:
        for what, where in done.items():
            typer.echo(f"{what}: {where}")


@STAGES.command("train")
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


@STAGES.command("eval")
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
    print_run(result, as_json, (RESULTS,))


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
