"""An engine by its name, open for the length of a block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from kshot.engine.engine import Engine
from kshot.engine.ray_engine import RayEngine
from kshot.errors import ConfigError

EngineName = Literal["local", "ray"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@contextmanager
def open_engine(
    name: str,
    *,
    address: str | None = None,
    num_workers: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Engine | None]:
    """Yield the engine of that name; None for `local`, where all is done in this process.

    Args:
        name: `local` or `ray`.
        address: As in `RayEngine`.
        num_workers: As in `RayEngine`.
        say: As in `RayEngine`.

    Raises:
        ConfigError: The name is unknown, or a setting has no effect on this engine.
        MissingExtraError: Ray is not installed.
    """
    if name not in ENGINES:
        raise ConfigError(f"expected an engine of {', '.join(ENGINES)}, got {name!r}")
    if name == "ray":
        with RayEngine(address, num_workers=num_workers, say=say) as engine:
            yield engine
        return
    for option, value in (("address", address), ("workers", num_workers)):
        if value is not None:
            raise ConfigError(
                f"expected no {option} with the engine local, got {value!r}: leave it out, or choose the "
                "engine ray"
            )
    yield None
