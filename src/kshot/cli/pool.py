"""Commands about pools of open rows."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer

from kshot.cli.engine import Address, EngineChoice, EngineOption, Workers
from kshot.cli.printing import AsJson, print_result
from kshot.config import DataConfig, EncoderDtype, ExampleField, PoolSource
from kshot.corpus import (
    Pool,
    PoolFile,
    Vectors,
    describe_pool,
    embed_pool,
    load_encoder,
    read_pool,
    read_pool_file,
    search_pool,
    write_pool_file,
)
from kshot.corpus.encoders import TextEncoder
from kshot.corpus.pool_folder import is_pool_folder
from kshot.corpus.remote_file import is_url
from kshot.corpus.text_shards import spread_encoder
from kshot.errors import ConfigError
from kshot.rows import HUB_SCHEME
from kshot.terminal import RichProgress, found_table, pool_table

POOL = typer.Typer(no_args_is_help=True, help="Build, extend, describe and search pools of open rows.")

Folder = Annotated[Path, typer.Argument(help="A pool.")]
Sources = Annotated[
    list[str],
    typer.Argument(
        help="Files, patterns, Arrow folders, URLs (s3://...) and hf://owner/name[/config][@rev][:split]."
    ),
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="FIELD=COLUMN, such as output=answer; once a field.")
]
Limit = Annotated[int | None, typer.Option(help="Usable rows to read of each file.", min=1)]


@POOL.command("build")
def pool_build(
    folder: Annotated[Path, typer.Argument(help="Made new.")],
    sources: Sources,
    encoder: Annotated[
        str, typer.Option(help="static, or a sentence encoder: Hub id, folder or pypi: wheel.")
    ] = DataConfig().encoder,
    encoder_prefix: Annotated[str, typer.Option(help="Put before every text.")] = "",
    encoder_dtype: Annotated[
        EncoderDtype, typer.Option(help="Of a sentence encoder; bfloat16 is faster where there is hardware.")
    ] = "float32",
    columns: Columns = None,
    limit: Limit = None,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Read and embed open rows; a killed build goes on at its shard.

    Example: kshot pool build my-pool "data/*.parquet" hf://openai/gsm8k/main --encoder static
    """
    if is_pool_folder(folder):
        raise ConfigError(f"expected a new pool, got {folder}, which is one: use 'kshot pool add'")
    content = PoolFile(encoder=encoder, encoder_prefix=encoder_prefix, encoder_dtype=encoder_dtype)
    choice = EngineChoice(engine, address, workers)
    _extend(folder, content, _sources(sources, columns, limit), choice, as_json)


@POOL.command("add")
def pool_add(
    folder: Folder,
    sources: Sources,
    columns: Columns = None,
    limit: Limit = None,
    engine: EngineOption = "local",
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Add sources to a pool; only their rows are read and embedded.

    Example: kshot pool add my-pool more.jsonl --column instruction=question --column output=answer
    """
    choice = EngineChoice(engine, address, workers)
    _extend(folder, read_pool_file(folder), _sources(sources, columns, limit), choice, as_json)


@POOL.command("info")
def pool_info(folder: Folder, as_json: AsJson = False) -> None:
    """Show rows by source, what was skipped and why, and with which encoders it was embedded.

    Example: kshot pool info my-pool
    """
    _show(read_pool(read_pool_file(folder).sources, progress=RichProgress()), as_json)


@POOL.command("search")
def pool_search(
    folder: Folder,
    text: Annotated[str, typer.Argument(help="What to look for.")],
    top: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 10,
    as_json: AsJson = False,
) -> None:
    """Show the rows that are nearest to a text.

    Example: kshot pool search my-pool "How many apples are left?" --top 5
    """
    content = read_pool_file(folder)
    pool, vectors, encoder = _embedded(content, EngineChoice())
    found = [asdict(row) for row in search_pool(pool, vectors, encoder, text, top=top)]
    print_result(found if as_json else found_table(found), as_json)


def _extend(
    folder: Path, content: PoolFile, sources: list[PoolSource], choice: EngineChoice, as_json: bool
) -> None:
    """Read and embed all, then write the list, so that a source with a mistake is never listed."""
    content = content.with_sources(sources)
    pool, _, _ = _embedded(content, choice)
    write_pool_file(folder, content)
    _show(pool, as_json)


def _embedded(content: PoolFile, choice: EngineChoice) -> tuple[Pool, Vectors, TextEncoder]:
    progress = RichProgress()
    reference, prefix, dtype = content.encoder, content.encoder_prefix, content.encoder_dtype
    with choice.open(progress) as engine:
        here = load_encoder(reference, prefix=prefix, dtype=dtype)
        encoder = spread_encoder(here, engine, reference, prefix=prefix, dtype=dtype)
        pool = read_pool(content.sources, progress=progress)
        with progress.bar("embedding the pool", len(pool)) as advance:
            return pool, embed_pool(pool, encoder, advance), encoder


def _show(pool: Pool, as_json: bool) -> None:
    info = asdict(describe_pool(pool))
    print_result(info if as_json else pool_table(info), as_json)


def _sources(sources: list[str], columns: list[str] | None, limit: int | None) -> list[PoolSource]:
    pairs = dict(_column(one) for one in columns or [])
    return [
        PoolSource.model_validate({"path": _absolute(path), "columns": pairs, "limit": limit})
        for path in sources
    ]


def _column(text: str) -> tuple[str, str]:
    field, _, column = text.partition("=")
    if field not in get_args(ExampleField) or not column:
        fields = ", ".join(get_args(ExampleField))
        raise ConfigError(f"expected --column FIELD=COLUMN with a FIELD of {fields}, got {text!r}")
    return field, column


def _absolute(path: str) -> str:
    return path if path.startswith(HUB_SCHEME) or is_url(path) else str(Path(path).expanduser().absolute())
