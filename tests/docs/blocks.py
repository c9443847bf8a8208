"""The fenced blocks of a page, with what an HTML comment above one says of it.

`<!-- not run: REASON -->` keeps a block from being run, `<!-- before: COMMAND -->` is run before it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("bash", "python")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|before): (?P<said>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """One block.

    Attributes:
        page: Path from the root of the sources.
        line: Where it starts.
        language: Behind the fence; empty if nothing is there.
        text: What is in it.
        not_run: Why it is not run.
        before: What must be done before it gives what the page shows.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    before: str | None = None

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.not_run is None


def pages() -> list[Path]:
    """README, the examples' own and every page of the site."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "examples").rglob("README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def blocks_of(page: Path) -> list[Block]:
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    found = []
    for match in _BLOCK.finditer(text):
        said = {match["mark"]: match["said"]}
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(
            Block(name, line, match["language"], match["text"], said.get("not run"), said.get("before"))
        )
    return found
