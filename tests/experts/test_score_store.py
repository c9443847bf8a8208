"""The score store: what was put is there, whatever happens to the process or the file."""

import pytest

from kshot.errors import RunFolderError
from kshot.experts.score_store import ScoreStore, key_of


def test_roundtrip_through_the_file(tmp_path) -> None:
    path = tmp_path / "new" / "scores.jsonl"
    store = ScoreStore(path)
    assert "a" not in store
    store.put({"a": {"nll": [1.25, None]}, "b": True})
    store.put({"c": "ü\n"})
    again = ScoreStore(path)
    assert again["a"] == {"nll": [1.25, None]}
    assert again["b"] is True
    assert again["c"] == "ü\n"
    assert "d" not in again


def test_without_a_path_values_are_kept_in_memory(tmp_path) -> None:
    store = ScoreStore()
    store.put({"a": 1})
    assert store["a"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("torn", [1, 5, 20])
def test_a_half_written_line_is_left_out_and_written_over(tmp_path, torn) -> None:
    path = tmp_path / "scores.jsonl"
    ScoreStore(path).put({"a": 1, "b": 2})
    path.write_bytes(path.read_bytes()[:-torn])
    store = ScoreStore(path)
    assert store["a"] == 1
    assert "b" not in store
    store.put({"c": 3})
    whole = ScoreStore(path)
    assert (whole["a"], whole["c"]) == (1, 3)
    assert "b" not in whole


def test_a_damaged_line_is_passed_over(tmp_path) -> None:
    path = tmp_path / "scores.jsonl"
    store = ScoreStore(path)
    store.put({"a": 1})
    path.write_bytes(b'not json\n[1]\n{"key": "x"}\n\xff\xfe\n' + path.read_bytes())
    store = ScoreStore(path)
    assert store["a"] == 1
    store.put({"b": 2})
    assert ScoreStore(path)["b"] == 2


def test_a_file_that_cannot_be_read_or_written_is_an_error(tmp_path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot read .*folder\.jsonl"):
        ScoreStore(tmp_path / "folder.jsonl")
    (tmp_path / "file").write_text("")
    store = ScoreStore(tmp_path / "file" / "scores.jsonl")
    with pytest.raises(RunFolderError, match=r"cannot write .*scores\.jsonl"):
        store.put({"a": 1})


def test_keys_tell_values_apart() -> None:
    assert key_of("a", [1, 2]) == key_of("a", (1, 2))
    assert len({key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of("a", [1])}) == 4
