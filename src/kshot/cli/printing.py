"""What commands print: tables for people, JSON for programs."""

import json
from typing import Annotated, Any

import typer

from kshot.terminal import RESULTS

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_result(value: Any, as_json: bool) -> None:
    """Print JSON, or whatever rich can draw."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        RESULTS.print(value)
