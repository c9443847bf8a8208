"""A model on this machine as a writer."""

import shutil
from pathlib import Path

import pytest

from kshot.errors import ConfigError, SourceError
from kshot.language_model import LanguageModel
from kshot.rationales import Answer, LocalWriter, Sampling

PROMPTS = ["yes", "What is the sum of two and three?", "no no no", "maybe 0 1 2 3"]
GREEDY = Sampling(0.0, 0, 12)
SAMPLED = Sampling(1.0, 3, 12)


def _answers(writer: LocalWriter, sampling: Sampling, prompts=PROMPTS) -> list[Answer]:
    found = dict(writer.answers(prompts, sampling))
    return [found[index] for index in range(len(prompts))]


def test_against_generate(tiny_lm: LanguageModel) -> None:
    texts = tiny_lm.generate(PROMPTS, max_new_tokens=12)
    answers = _answers(LocalWriter(tiny_lm), GREEDY)
    assert [answer.text for answer in answers] == texts
    assert [answer.tokens_in for answer in answers] == [
        len(tiny_lm.template.encode_prompt(p)) for p in PROMPTS
    ]


def test_tokens_and_the_limit(tiny_lm: LanguageModel) -> None:
    counts = [0] * len(PROMPTS)

    def count(rows: list[int]) -> None:
        for row in rows:
            counts[row] += 1

    tiny_lm.generate(PROMPTS, max_new_tokens=12, on_rows=count)
    answers = _answers(LocalWriter(tiny_lm), GREEDY)
    assert [answer.tokens_out for answer in answers] == counts
    assert [answer.stop for answer in answers] == ["length" if n == 12 else "end" for n in counts]
    assert "length" in {answer.stop for answer in answers}


def test_an_end_token_ends_an_answer(tiny_lm: LanguageModel) -> None:
    tiny_lm.model.generation_config.eos_token_id = list(range(len(tiny_lm.tokenizer)))
    answers = _answers(LocalWriter(tiny_lm), GREEDY)
    assert {(answer.text, answer.tokens_out, answer.stop) for answer in answers} == {("", 1, "end")}


def test_invariant_samples_do_not_depend_on_the_batch(tiny_lm: LanguageModel) -> None:
    at_once = _answers(LocalWriter(tiny_lm, batch_size=4), SAMPLED)
    assert _answers(LocalWriter(tiny_lm, batch_size=1), SAMPLED) == at_once
    assert _answers(LocalWriter(tiny_lm, batch_size=4), Sampling(1.0, 4, 12)) != at_once
    assert _answers(LocalWriter(tiny_lm, batch_size=4), GREEDY) != at_once


def test_batches_come_one_by_one(tiny_lm: LanguageModel) -> None:
    calls = 0

    class Counted(LanguageModel):
        def generate(self, *args, **settings):
            nonlocal calls
            calls += 1
            return super().generate(*args, **settings)

    writer = LocalWriter(Counted(tiny_lm.model, tiny_lm.tokenizer), batch_size=1)
    next(writer.answers(PROMPTS, GREEDY))
    assert calls == 1


def test_a_prompt_that_does_not_fit(tiny_lm: LanguageModel) -> None:
    answers = _answers(LocalWriter(tiny_lm), GREEDY, ["yes", "x " * 600])
    assert answers[1].stop == "prompt_too_long"
    assert (answers[1].text, answers[1].tokens_out) == ("", 0)
    assert answers[0] == _answers(LocalWriter(tiny_lm), GREEDY)[0]


def test_load(tiny_model_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_folder, copy)
    first = LocalWriter.load(str(copy), device="cpu")
    assert first.identity["model"] == str(copy)
    assert LocalWriter.load(str(copy), device="cpu").identity == first.identity
    assert LocalWriter.load(str(copy), device="cpu", dtype="bfloat16").identity != first.identity
    assert LocalWriter.load(str(tiny_model_folder), device="cpu").identity["files"] != first.identity["files"]
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert LocalWriter.load(str(copy), device="cpu").identity["files"] != first.identity["files"]


def test_what_cannot_be_loaded(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        LocalWriter.load(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="expected a causal language model with safetensors"):
        LocalWriter.load(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        LocalWriter(tiny_lm, batch_size=0)
