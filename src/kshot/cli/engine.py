"""Where the work is done: the options of every command that scores adapters or embeds open rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import typer

from kshot.engine import Engine, EngineName, open_engine
from kshot.progress import Progress

EngineOption = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="Where adapters are scored and open rows embedded: in this process, or by the workers of Ray.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Of a Ray cluster, HOST:PORT or auto; a Ray of this machine where absent."),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Of Ray; where absent one a GPU, or as many as share the cores, up to 4 each."),
]


class EngineChoice(NamedTuple):
    """What the options say."""

    engine: EngineName = "local"
    address: str | None = None
    workers: int | None = None

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Engine | None]:
        """Yield the engine, which ends with the block; None for the local one.

        Raises:
            ConfigError: An option has no effect, or cannot be used.
            MissingExtraError: Ray is not installed.
        """
        name, address, workers = self
        with open_engine(name, address=address, num_workers=workers, say=progress.say) as engine:
            yield engine
