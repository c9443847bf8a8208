"""The errors that the docs quote are those that a reader sees."""

import re

import pytest

from .blocks import ROOT, Block, blocks_of
from .conftest import Shell

QUOTED = [block for block in blocks_of(ROOT / "docs" / "faq.md") if block.language == "console"]


def test_many_are_quoted() -> None:
    assert len(QUOTED) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("block", QUOTED, ids=[block.text.split("\n")[1][:50] for block in QUOTED])
def test_a_quoted_error_is_the_one_that_is_seen(block: Block, shell: Shell) -> None:
    command, _, quoted = block.text.removeprefix("$ ").partition("\n")
    prepared = shell.run(block.before or "true")
    assert prepared.returncode == 0, prepared.stderr
    done = shell.run(command)
    assert done.returncode == 2, done.stdout
    _, is_error, error = done.stderr.rpartition("error: ")
    seen = f"error: {error}" if is_error else done.stdout
    assert _without_hashes(seen.replace(f"{shell.folder.resolve()}/", "")) == _without_hashes(quoted)


def _without_hashes(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{12}\b", "HASH", text).strip()
