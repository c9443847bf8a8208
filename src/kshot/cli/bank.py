"""Commands about banks of adapters."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kshot.bank import Bank, Limits, build_bank, read_list, read_size, search_hub, sync_bank
from kshot.cli.printing import AsJson, print_result
from kshot.errors import ConfigError
from kshot.terminal import RichProgress, bank_table, sync_table

BANK = typer.Typer(no_args_is_help=True, help="List, add, fetch, verify and build banks of adapters.")

Folder = Annotated[Path, typer.Argument(help="A bank.")]
NewFolder = Annotated[Path, typer.Argument(help="A bank; made if it is not there.")]
MaxSize = Annotated[str, typer.Option(help="Largest size of an adapter.")]


@BANK.command("list")
def bank_list(
    folder: Annotated[str, typer.Argument(help="A bank, an adapter folder or hf://owner/name.")],
    as_json: AsJson = False,
) -> None:
    """Show the adapters of a bank.

    Example: kshot bank list banks/smollm2-135m
    """
    entries = [adapter.entry.model_dump(mode="json") for adapter in Bank.open(folder)]
    print_result(entries if as_json else bank_table(entries), as_json)


@BANK.command("add")
def bank_add(
    folder: NewFolder,
    source: Annotated[str, typer.Argument(help="A PEFT LoRA folder, or hf://owner/name[@revision].")],
    name: Annotated[str | None, typer.Option(help="Its name in the bank.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of its weights; its model card's by default.")] = None,
    max_size: MaxSize = "1GB",
    as_json: AsJson = False,
) -> None:
    """Copy an adapter into a bank, from a folder or the Hub.

    Example: kshot bank add my-bank hf://owner/sql-lora@main --name sql
    """
    known: dict[str, Any] = {} if licence is None else {"licence": licence}
    limits = Limits(max_bytes=read_size(max_size))
    adapter = Bank.create(folder).add(source, name=name, limits=limits, **known)
    entry = adapter.entry
    if as_json:
        print_result(entry.model_dump(mode="json"), as_json)
        return
    typer.echo(f"added {adapter.name}: r = {entry.r}, {', '.join(entry.target_modules)}; {entry.origin}")


@BANK.command("sync")
def bank_sync(
    folder: NewFolder,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of a base model: take the adapters that name it.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="Of those, the ones with this in their names.")] = None,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="Take these adapters: one hf://owner/name or folder a line.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licences to take, such as apache-2.0,mit; all by default.")
    ] = None,
    max_size: MaxSize = "1GB",
    limit: Annotated[
        int | None, typer.Option(help="Stop when so many of them are in the bank.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fill a bank with the adapters of a base model or a list; a killed sync goes on where it stood.

    Example: kshot bank sync my-bank --base-model mistralai/Mistral-7B-v0.1 --licence apache-2.0,mit
    """
    if (base_model is None) == (list_file is None):
        raise ConfigError("expected either --base-model or --list, got both or neither: give one")
    if search is not None and base_model is None:
        raise ConfigError("--search narrows --base-model, and a list was given: leave it out")
    licences = tuple(one.strip() for one in licence.split(",") if one.strip()) if licence else None
    limits = Limits(max_bytes=read_size(max_size), licences=licences)
    candidates = read_list(list_file) if list_file else search_hub(str(base_model), search=search)
    bank = Bank.create(folder)
    outcomes = sync_bank(bank, candidates, limits=limits, limit=limit, progress=RichProgress())
    rows = [asdict(outcome) for outcome in outcomes]
    print_result(rows if as_json else sync_table(rows), as_json)
    raise typer.Exit(2 if Counter(outcome.status for outcome in outcomes)["failed"] else 0)


@BANK.command("index")
def bank_index(folder: Folder, as_json: AsJson = False) -> None:
    """Make the index of a folder of adapters, or complete that of a bank: missing checksums and fingerprints.

    Example: kshot bank index my-bank
    """
    bank = Bank.open(folder)
    with RichProgress().bar("adapters", len(bank)) as advance:
        done = bank.complete(advance)
    if as_json:
        print_result({"completed": list(done)}, as_json)
        return
    typer.echo(f"{len(done)} adapters completed" + (f": {', '.join(done)}" if done else ""))


@BANK.command("verify")
def bank_verify(folder: Folder, as_json: AsJson = False) -> None:
    """Check every adapter of a bank: checksums, shapes, finite weights.

    Example: kshot bank verify banks/smollm2-135m
    """
    bank = Bank.open(folder)
    with RichProgress().bar("adapters", len(bank)) as advance:
        found = bank.verify(advance)
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
    as_json: AsJson = False,
) -> None:
    """Train the adapters of a recipe, one at a time; a killed build goes on with the next.

    Example: KSHOT_DATA=data kshot bank build recipes/smollm2-135m.yaml banks/smollm2-135m
    """
    bank = build_bank(recipe, folder, report=RichProgress().say if as_json else typer.echo)
    if as_json:
        print_result([adapter.entry.model_dump(mode="json") for adapter in bank], as_json)
