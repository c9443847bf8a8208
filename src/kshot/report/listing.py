"""Rows that a reader pages through, filters and searches: entries, their filters, their JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kshot.report.wording import clip

FIRST_PAGE = 10  # entries written into the page itself, which a reader without scripts sees


@dataclass(frozen=True, slots=True)
class Chip:
    """A short fact beside an entry; `tone` is empty, `right` or `wrong`."""

    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Detail:
    """A labelled text that shows when an entry is opened; `tone` as of a chip."""

    label: str
    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row.

    Attributes:
        lead: A number or a name in front.
        text: What the row is.
        chips: Facts.
        details: What shows when it is opened.
        tags: What the filters look for.
    """

    lead: str
    text: str
    chips: tuple[Chip, ...] = ()
    details: tuple[Detail, ...] = ()
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Select:
    """A filter: of its options, tag and label each, one holds at a time; the first has no tag."""

    label: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows of one kind.

    Attributes:
        id: Of its place in the page.
        noun: What a row is called.
        entries: In their order.
        selects: Filters.
        total: Rows of the run; more than entries where the page cannot hold all.
        file: Where all of them are.
    """

    id: str
    noun: str
    entries: tuple[Entry, ...]
    selects: tuple[Select, ...]
    total: int
    file: str

    def to_json(self, num_entries: int, length: int) -> dict[str, Any]:
        """Return the first entries, each a list in the order of `Entry`'s fields, long texts cut."""
        return {
            "noun": self.noun,
            "entries": [_to_json(entry, length) for entry in self.entries[:num_entries]],
        }


def _to_json(entry: Entry, length: int) -> list[Any]:
    return [
        entry.lead,
        clip(entry.text, length),
        [[chip.text, chip.tone] for chip in entry.chips],
        [[one.label, clip(one.text, length), one.tone] for one in entry.details],
        sorted(entry.tags),
    ]


def options_of(prefix: str, names: Sequence[str], everything: str) -> tuple[tuple[str, str], ...]:
    """Return the options of a filter by names: tags are the prefix and the place of a name."""
    return (("", everything), *((f"{prefix}{place}", name) for place, name in enumerate(names)))
