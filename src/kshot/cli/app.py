"""The command line as a whole. Every mistake is one line on stderr and exit code 2."""

import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from kshot.cli.bank import BANK
from kshot.cli.common import share
from kshot.cli.completion import COMPLETION
from kshot.cli.doctor import DOCTOR
from kshot.cli.finished import FINISHED
from kshot.cli.init import INIT
from kshot.cli.mistakes import explain
from kshot.cli.pool import POOL
from kshot.cli.rationales import RATIONALES
from kshot.cli.serve import SERVE
from kshot.cli.stages import STAGES
from kshot.terminal import quiet_libraries

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,  # 'kshot completion' instead
    epilog="Ctrl-C stops a run so that the same command goes on; twice quits at once. Every command takes "
    "--quiet, and --json where a program would read it. KSHOT_HOME: where fetched models and pools are kept.",
)
app.add_typer(INIT)
app.add_typer(STAGES)
app.add_typer(FINISHED)
app.add_typer(RATIONALES)
app.add_typer(SERVE)
app.add_typer(DOCTOR)
app.add_typer(COMPLETION)
app.add_typer(BANK, name="bank")
app.add_typer(POOL, name="pool")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Turn a few labelled examples, a bank of LoRA adapters and open data into one task expert."""
    quiet_libraries()
    if version:
        typer.echo(installed_version("kshot"))
        raise typer.Exit


share(app)


def main() -> None:
    """Run a command; turn every failure into one line and an exit code."""
    try:
        app()
    except Exception as error:
        sys.exit(explain(error))
