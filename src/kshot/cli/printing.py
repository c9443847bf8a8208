"""What commands print: tables for people, JSON for programs."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer

from kshot.pipeline import RunResult
from kshot.run_folder import DATA_SUMMARY, ORDER, RESULTS, SELECTION, RunFolder
from kshot.terminal import RESULTS as OUTPUT
from kshot.terminal import data_table, order_table, result_table, selection_table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_result(value: Any, as_json: bool) -> None:
    """Print JSON, or whatever rich can draw."""
    if as_json:
        typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
    else:
        OUTPUT.print(value)


def print_run(
    result: RunResult, as_json: bool, parts: tuple[str, ...], beside: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Print parts of a run, by the names of the files that hold them; `beside` is for programs alone."""
    folder = RunFolder.existing(result.folder)
    found: dict[str, Any] = dict(beside)
    if ORDER in parts:
        found["screening"] = folder.read_json("screening", ORDER)
    if SELECTION in parts:
        found["selection"] = folder.read_json("experts", SELECTION)
    if DATA_SUMMARY in parts:
        found["data"] = folder.read_json("data", DATA_SUMMARY)
    if RESULTS in parts:
        found |= {"results": result.results, "choice": result.choice}
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
        OUTPUT.print(result_table(found["results"], found["choice"]))
