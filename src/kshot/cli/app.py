"""The command line as a whole. Every mistake is one line on stderr and exit code 2."""

import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from kshot.cli.bank import BANK
from kshot.cli.rationales import RATIONALES
from kshot.cli.task import TASK
from kshot.errors import KshotError
from kshot.terminal import ERRORS, quiet_libraries

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(TASK)
app.add_typer(RATIONALES)
app.add_typer(BANK, name="bank")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Turn a few labelled examples, a bank of LoRA adapters and open data into one task expert."""
    if version:
        typer.echo(installed_version("kshot"))
        raise typer.Exit


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
