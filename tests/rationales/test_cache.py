"""Answers on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kshot.errors import RunFolderError
from kshot.rationales import Answer, AnswerCache, Sampling

WRITER = {"model": "m", "endpoint": "http://a/v1"}
SAMPLING = Sampling(0.7, 3, 100)
ANSWER = Answer("Größe 🙂", 5, None, "length", ("seed",))


def test_roundtrip(tmp_path: Path) -> None:
    AnswerCache(tmp_path / "new").put(WRITER, "why?", SAMPLING, ANSWER)
    assert AnswerCache(tmp_path / "new").get(WRITER, "why?", SAMPLING) == ANSWER


@pytest.mark.parametrize(
    ("writer", "prompt", "sampling"),
    [
        (WRITER | {"model": "n"}, "why?", SAMPLING),
        (WRITER | {"endpoint": "http://b/v1"}, "why?", SAMPLING),
        (WRITER, "why", SAMPLING),
        (WRITER, "why?", replace(SAMPLING, temperature=0.8)),
        (WRITER, "why?", replace(SAMPLING, seed=4)),
        (WRITER, "why?", replace(SAMPLING, max_new_tokens=101)),
    ],
)
def test_everything_that_was_asked_is_part_of_the_key(
    tmp_path: Path, writer, prompt: str, sampling: Sampling
) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(WRITER, "why?", SAMPLING, ANSWER)
    assert cache.get(writer, prompt, sampling) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"answer": 3}', '{"answer": {"text": 3, "refused": []}}', "\0"]
)
def test_a_damaged_file_is_made_again(tmp_path: Path, content: str) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(WRITER, "why?", SAMPLING, ANSWER)
    next(tmp_path.glob("*.json")).write_text(content)
    assert cache.get(WRITER, "why?", SAMPLING) is None
    cache.put(WRITER, "why?", SAMPLING, ANSWER)
    assert cache.get(WRITER, "why?", SAMPLING) == ANSWER


def test_a_file_says_what_was_asked(tmp_path: Path) -> None:
    AnswerCache(tmp_path).put(WRITER, "why?", SAMPLING, ANSWER)
    kept = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert kept["request"]["writer"] == WRITER
    assert kept["request"]["prompt"] == "why?"


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path))
    assert AnswerCache().folder == tmp_path / "rationales"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        AnswerCache(tmp_path / "file").put(WRITER, "why?", SAMPLING, ANSWER)
