"""Scoring through kills: what is stored is not computed again, and what changed is."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kshot.bank import Bank
from kshot.examples import Example, write_examples
from kshot.experts import ExpertScore, ScoreStore, score_experts
from kshot.language_model import LanguageModel

from .banks import change_weights, three_adapters
from .shots import SHOTS


@pytest.fixture
def bank(lora_folder) -> Bank:
    return three_adapters(lora_folder)


def _without_seconds(scores) -> list[dict[str, object]]:
    return [
        {field: getattr(score, field) for field in ExpertScore.__dataclass_fields__ if field != "seconds"}
        for score in scores
    ]


class StopError(Exception):
    """Stands for whatever ends a run."""


class Stopping(ScoreStore):
    """Gives up after some batches are on disk."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__(path)
        self.left = after

    def put(self, values) -> None:
        super().put(values)
        self.left -= 1
        if self.left == 0:
            raise StopError


class Counting(ScoreStore):
    """Counts batches."""

    batches = 0

    def put(self, values) -> None:
        super().put(values)
        self.batches += 1


LONG = [Example("count", f"{word} two three " * 35, id=word) for word in ("one", "no", "maybe")]
SMALL = {"max_new_tokens": 4, "memory_mb": 1, "adapters_at_once": 2}


def test_stopped_after_any_batch_the_rest_gives_the_same_bits(tiny_lm, bank, tmp_path) -> None:
    bank = bank.subset(["first", "second"])
    whole = Counting(tmp_path / "whole.jsonl")
    expected = score_experts(tiny_lm, bank, LONG, store=whole, **SMALL)
    assert whole.batches >= 6
    for after in range(1, whole.batches):
        path = tmp_path / f"{after}.jsonl"
        with pytest.raises(StopError):
            score_experts(tiny_lm, bank, LONG, store=Stopping(path, after), **SMALL)
        resumed = Counting(path)
        scores = score_experts(tiny_lm, bank, LONG, store=resumed, **SMALL)
        assert resumed.batches == whole.batches - after
        assert _without_seconds(scores) == _without_seconds(expected)


def test_what_is_known_is_not_computed_again_and_an_adapter_more_costs_one(
    tiny_lm, bank, lora_folder, tmp_path
) -> None:
    path = tmp_path / "scores.jsonl"
    few = bank.subset(["first", "third"])
    score_experts(tiny_lm, few, SHOTS, store=ScoreStore(path), max_new_tokens=4)
    lines = len(path.read_text().splitlines())
    again = Counting(path)
    score_experts(tiny_lm, few, SHOTS, store=again, max_new_tokens=4)
    assert len(path.read_text().splitlines()) == lines
    scores = score_experts(tiny_lm, bank, SHOTS, store=ScoreStore(path), max_new_tokens=4)
    assert len(path.read_text().splitlines()) == lines + len(SHOTS) * 2 + 1
    fresh = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    for one, other in zip(scores, fresh, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)


@pytest.mark.parametrize("what", ["weights", "shots", "scorer", "base", "length", "system"])
def test_a_change_of_anything_is_scored_anew(tiny_lm, bank, tmp_path, what) -> None:
    path = tmp_path / "scores.jsonl"
    bank = bank.subset(["first"])
    before = score_experts(tiny_lm, bank, SHOTS[:1], store=ScoreStore(path), max_new_tokens=2)[0]
    shots, settings, lm = SHOTS[:1], {"max_new_tokens": 2, "scorer": "exact_match"}, tiny_lm
    if what == "weights":
        bank = Bank([change_weights(bank["first"], lambda key, value: value * 2)])
    elif what == "shots":
        shots = [Example("add one and two", "four", id="a")]
    elif what == "scorer":
        shots = [Example("add one and two", "3", rationale=SHOTS[0].rationale, id="a")]
        settings["scorer"] = "number"
    elif what == "base":
        with torch.no_grad():
            next(tiny_lm.model.parameters()).mul_(1.5)
    elif what == "length":
        settings["max_new_tokens"] = 3
    else:
        lm = LanguageModel(tiny_lm.model, tiny_lm.tokenizer, system_prompt="yes no")
    after = Counting(path)
    score = score_experts(lm, bank, shots, store=after, **settings)[0]
    assert after.batches >= 2
    fresh = score_experts(lm, bank, shots, **settings)
    assert _without_seconds([score]) == _without_seconds(fresh)
    if what != "length":
        assert score != before


SLOWLY = """
import sys, time
from pathlib import Path
from kshot.bank import Bank
from kshot.bank.adapter import Adapter, describe
from kshot.examples import read_examples
from kshot.experts import ScoreStore, score_experts
from kshot.language_model import LanguageModel

model, shots, store, *folders = map(Path, sys.argv[1:])
bank = Bank([Adapter(folder, describe(folder, folder.name)) for folder in folders])
lm = LanguageModel.load(str(model), device="cpu")
score_experts(lm, bank, read_examples(shots), store=ScoreStore(store), max_new_tokens=4, adapters_at_once=1,
    progress=lambda pairs: time.sleep(60 * pairs))
"""


def test_killed_in_the_middle_and_run_again(tiny_lm, tiny_model_folder, bank, tmp_path) -> None:
    shots, path = tmp_path / "shots.jsonl", tmp_path / "scores.jsonl"
    write_examples(shots, SHOTS)
    folders = [adapter.folder for adapter in bank]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, tiny_model_folder, shots, path, *folders], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while not path.exists() or path.read_bytes().count(b'"answer"') < len(SHOTS):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = path.read_bytes()
    resumed = Counting(path)
    settings = {"max_new_tokens": 4, "adapters_at_once": 1}
    scores = score_experts(tiny_lm, bank, SHOTS, store=resumed, **settings)
    assert resumed.batches == 2 * 2 + 1  # of the two adapters that were left, and the mark at the end
    assert path.read_bytes().startswith(known)
    for one, other in zip(scores, score_experts(tiny_lm, bank, SHOTS, **settings), strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-5)
        assert one.shot_answer == other.shot_answer
