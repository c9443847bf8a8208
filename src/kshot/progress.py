"""How long-running code says where it is, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows stages and bars; the command line draws them, the library stays silent by default."""

    def say(self, text: str) -> None:
        """Show one line."""
        ...

    def bar(self, text: str, total: int) -> AbstractContextManager[Advance]:
        """Yield a function that takes the number of units just finished."""
        ...


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Ignore the line."""

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda units: None
