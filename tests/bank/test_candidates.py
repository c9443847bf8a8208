"""Candidates come from a list, or from what the Hub knows of a base model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kshot.bank import Candidate, read_list, search_hub
from kshot.errors import ConfigError, SourceError


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "list.txt").write_text("# adapters\n\nhf://a/b@v1  # pinned\n org/name\nmine\n")
    found = [one.reference for one in read_list(tmp_path / "list.txt")]
    assert found == ["hf://a/b@v1", "org/name", str(tmp_path / "mine")]


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none.txt: .*; expected a text with one adapter"):
        read_list(tmp_path / "none.txt")
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"expected adapters in .*list.txt, one a line, got none"):
        read_list(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot read .*list.txt"):
        read_list(tmp_path / "list.txt")


def test_search(hub: Any) -> None:
    for number in range(5):
        hub.add(f"org/lora-{number}", {}, downloads=number, card={"license": "mit"} if number else None)
    hub.add("org/lora-of-another", {}, base_model="other/base")
    hub.add("org/sql", {})
    found = search_hub("tiny/base", search="lora")
    assert found[0] == Candidate("hf://org/lora-4", "mit")
    assert [one.reference for one in found] == [f"hf://org/lora-{number}" for number in (4, 3, 2, 1, 0)]
    assert found[-1].licence == "unknown"
    assert len(search_hub("tiny/base")) == 6


def test_searches_that_find_nothing(hub: Any, no_hub: Callable[[], None]) -> None:
    with pytest.raises(SourceError, match="expected adapters of tiny/base on the Hub, got none"):
        search_hub("tiny/base")
    with pytest.raises(
        SourceError, match="expected adapters of tiny/base with 'x' in their names on the Hub"
    ):
        search_hub("tiny/base", search="x")
    with pytest.raises(ConfigError, match="expected the Hub id of a base model, owner/name, got 'base'"):
        search_hub("base")
    hub.busy += [400]
    with pytest.raises(SourceError, match="adapters of tiny/base: the Hub refused: "):
        search_hub("tiny/base")
