"""Commands about a finished run: its expert for other tools, its report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from kshot.cli.printing import AsJson, print_result
from kshot.mixture.mean_routing import ConstantGatesLoss
from kshot.pipeline import Exported, Merged, export_expert, export_gguf, export_merged
from kshot.pipeline.export_card import Form
from kshot.report import COMPARISON, write_comparison, write_report
from kshot.run_folder import RunFolder
from kshot.terminal import RichProgress

FINISHED = typer.Typer()

_EXPORTS: Mapping[Form, Callable[..., Exported | Merged]] = MappingProxyType(
    {"lora": export_expert, "merged": export_merged, "gguf": export_gguf}
)


@FINISHED.command("export")
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


@FINISHED.command("report")
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
