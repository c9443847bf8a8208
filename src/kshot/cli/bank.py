"""Commands about banks of adapters."""

from pathlib import Path
from typing import Annotated

import typer

from kshot.bank import Bank, build_bank
from kshot.cli.printing import AsJson, print_result
from kshot.terminal import bank_table

BANK = typer.Typer(no_args_is_help=True, help="List, add, verify and build banks of adapters.")


@BANK.command("list")
def bank_list(folder: Annotated[Path, typer.Argument(help="A bank.")], as_json: AsJson = False) -> None:
    """Show the adapters of a bank.

    Example: kshot bank list banks/smollm2-135m
    """
    entries = [adapter.entry.model_dump(mode="json") for adapter in Bank.open(folder)]
    print_result(entries if as_json else bank_table(entries), as_json)


@BANK.command("add")
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


@BANK.command("verify")
def bank_verify(folder: Annotated[Path, typer.Argument(help="A bank.")], as_json: AsJson = False) -> None:
    """Check every adapter of a bank: checksum, shapes, finite weights.

    Example: kshot bank verify banks/smollm2-135m
    """
    found = Bank.open(folder).verify()
    broken = {name: problem for name, problem in found.items() if problem}
    if as_json:
        print_result(found, as_json)
    else:
        typer.echo("\n".join(broken.values()) if broken else f"{len(found)} adapters are sound")
    raise typer.Exit(2 if broken else 0)


@BANK.command("build")
def bank_build(
    recipe: Annotated[Path, typer.Argument(help="A bank recipe (YAML).")],
    folder: Annotated[Path, typer.Argument(help="The bank; adapters trained before are kept.")],
) -> None:
    """Train the adapters of a recipe, one at a time; a killed build goes on with the next.

    Example: KSHOT_DATA=data kshot bank build recipes/smollm2-135m.yaml banks/smollm2-135m
    """
    build_bank(recipe, folder, report=typer.echo)
