"""The command that looks at environment and task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from kshot.cli.printing import AsJson, print_result
from kshot.doctor import Finding, check_environment, check_task, is_usable

DOCTOR = typer.Typer()
_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red"}


@DOCTOR.command("doctor")
def doctor_command(
    task: Annotated[Path | None, typer.Argument(help="A task file (YAML) to look at too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look at versions, GPU, memory, disk, Hub and extras, and at what a task names.

    The exit code is 1 if something is in the way of a run.

    Example: kshot doctor my-task/task.yaml
    """
    findings = [*check_environment(), *(check_task(task) if task else ())]
    usable = is_usable(findings)
    if as_json:
        print_result({"usable": usable, "findings": [finding.to_json() for finding in findings]}, True)
    else:
        print_result(_table(findings), False)
    raise typer.Exit(0 if usable else 1)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("", "state", "found", box=SIMPLE_HEAD)
    for finding in findings:
        state = Text(finding.state, style=_STYLES[finding.state])
        found = Text("; ".join(filter(None, (finding.found, finding.advice))))
        table.add_row(Text(finding.name, no_wrap=True), state, found)
    problems = sum(finding.state == "problem" for finding in findings)
    table.caption = f"{problems} in the way of a run" if problems else "nothing is in the way of a run"
    return table
