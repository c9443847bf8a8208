"""Adapters block by block, the next block read while this one is worked on."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from kshot.errors import KshotError
from kshot.mixture import LoraExpert


class Loadable(Protocol):
    """What can be asked for its factors; `kshot.bank.Adapter` is one."""

    @property
    def name(self) -> str:
        """Unique among all."""

    def load(self) -> LoraExpert:
        """Read the factors.

        Raises:
            KshotError: They cannot be used.
        """


ReadBlock = tuple[list[LoraExpert], dict[str, str]]
"""Those of a block that could be read, and for each other by name why not."""


def read_ahead(blocks: Iterable[Sequence[Loadable]]) -> Iterator[ReadBlock]:
    """Read blocks in a thread, one ahead: two are in memory."""
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming: Future[ReadBlock] | None = None
        for block in blocks:
            following = reader.submit(read_block, block)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def read_block(block: Sequence[Loadable]) -> ReadBlock:
    """Read a block; one that cannot be read stops no other."""
    experts, failures = [], {}
    for adapter in block:
        try:
            experts.append(adapter.load())
        except KshotError as error:
            failures[adapter.name] = str(error)
    return experts, failures
