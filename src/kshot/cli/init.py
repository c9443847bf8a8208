"""The command that writes a task folder."""

from pathlib import Path
from typing import Annotated

import typer

from kshot.cli.printing import AsJson, print_result
from kshot.init import write_task_folder

INIT = typer.Typer()


@INIT.command("init")
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
