"""Data sets of the Hub, streamed: `hf://owner/name[/config][@revision][:split]`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import load_dataset
from huggingface_hub import HfApi

from kshot.errors import SourceError, reason_of

HUB_SCHEME = "hf://"
_REFERENCE = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+|/[^:@]+|[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(:(?P<split>.+))?"
)


@dataclass(frozen=True, slots=True)
class HubDataset:
    """One split of a data set.

    Attributes:
        name: Its id; a folder with such files is taken as well.
        config: Its configuration, such as `main` of openai/gsm8k.
        revision: Branch, tag or commit; the main branch where there is none.
        split: `train` by default.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, reference: str) -> "HubDataset":
        """Read a reference.

        Raises:
            SourceError: It has another form.
        """
        found = _REFERENCE.fullmatch(reference.removeprefix(HUB_SCHEME))
        if not found:
            raise SourceError(f"expected hf://owner/name[/config][@revision][:split], got {reference!r}")
        return cls(found["name"], found["config"], found["revision"], found["split"] or "train")

    def pinned(self) -> "HubDataset":
        """Return the data set at the commit that its revision names now.

        Raises:
            SourceError: The Hub is out of reach, or has no such data set.
        """
        if Path(self.name).is_dir():
            return self
        try:
            return replace(self, revision=HfApi().dataset_info(self.name, revision=self.revision).sha)
        except Exception as error:  # the Hub client raises its own, httpx's and the standard library's kinds
            raise self._unreadable(error) from error

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yield each row after its place; nothing but the part that is read is fetched.

        Raises:
            SourceError: The data set cannot be read.
        """
        try:
            rows = load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
            yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        except Exception as error:  # the library raises its own, the Hub's and the network's kinds
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(
            f"cannot read the Hub data set {self.name!r}: {reason_of(error)}; check the name and the network"
        )
