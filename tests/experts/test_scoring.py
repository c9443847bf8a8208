"""Scoring: against a plain PEFT loop at batch 1, through kills, and with adapters that cannot be scored."""

import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from kshot.bank import Bank
from kshot.bank.adapter import WEIGHTS, Adapter, describe, sha256_of
from kshot.errors import AdapterError, ConfigError, ExampleError
from kshot.evaluation import evaluate
from kshot.examples import Example, write_examples
from kshot.experts import ExpertScore, ScoreStore, attached, score_experts
from kshot.language_model import LanguageModel

from .banks import bank_of
from .shots import QUESTIONS, SHOTS


@pytest.fixture
def bank(lora_folder) -> Bank:
    return bank_of(
        lora_folder("first", seed=1), lora_folder("second", seed=2, r=2), lora_folder("third", seed=3)
    )


def _change(adapter: Adapter, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Adapter:
    """Write other weights, with an entry that fits them."""
    weights = load_file(adapter.folder / WEIGHTS)
    save_file(
        {key: change(key, value).contiguous() for key, value in weights.items()}, adapter.folder / WEIGHTS
    )
    return Adapter(adapter.folder, describe(adapter.folder, adapter.name))


def _without_seconds(scores) -> list[dict[str, object]]:
    return [
        {field: getattr(score, field) for field in ExpertScore.__dataclass_fields__ if field != "seconds"}
        for score in scores
    ]


@torch.no_grad()
def _alone(lm: LanguageModel, model, prompt: str, target: str) -> torch.Tensor:
    row = lm.template.encode(prompt, target)
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids).logits[0, row.prompt_length - 1 : -1]
    return cross_entropy(logits, ids[0, row.prompt_length :], reduction="none").double()


@pytest.mark.parametrize("memory_mb", [None, 1], ids=["one batch", "many batches"])
def test_against_a_plain_peft_loop(tiny_lm, tiny_model_folder, bank, memory_mb) -> None:
    scores = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4, memory_mb=memory_mb)
    assert [score.name for score in scores] == bank.names
    for score, adapter in zip(scores, bank, strict=True):
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        model = PeftModel.from_pretrained(base, str(adapter.folder)).eval()
        means: dict[str, list[float]] = {"rationale first": [], "answer first": []}
        for shot in SHOTS:
            texts = [shot.rationale, shot.output] if shot.rationale else [shot.output]
            for order, parts in zip(means, (texts, texts[::-1]), strict=True):
                means[order].append(_alone(tiny_lm, model, shot.request, "\n".join(parts)).mean().item())
        first = means["rationale first"]
        assert score.shot_nll == pytest.approx(first, rel=1e-3)
        assert score.reasoning_ppl == pytest.approx(statistics.fmean(map(math.exp, first)), rel=1e-3)
        assert score.answer_first_ppl == pytest.approx(
            statistics.fmean(map(math.exp, means["answer first"])), rel=1e-3
        )
        assert score.mean_nll == pytest.approx(statistics.fmean(first), rel=1e-3)
        assert score.median_nll == pytest.approx(statistics.median(first), rel=1e-3)
        assert (score.n, score.num_rationales, score.shot_margin) == (3, 2, None)
        assert score.seconds > 0


def test_against_evaluation_of_each_adapter_alone(tiny_lm, bank) -> None:
    scores = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=6)
    for score, adapter in zip(scores, bank, strict=True):
        with attached(tiny_lm, {adapter.name: adapter.load()}, gates=[1.0]):
            alone = evaluate(tiny_lm, SHOTS, max_new_tokens=6)
        assert score.shot_answer == tuple(one.prediction for one in alone.predictions)
        assert score.shot_correct == tuple(alone.correct)
        assert score.accuracy == alone.accuracy
    assert len({score.shot_answer for score in scores}) > 1


def test_multiple_choice_against_evaluation_and_margins_by_hand(tiny_lm, tiny_model_folder, bank) -> None:
    scores = score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice")
    for score, adapter in zip(scores, bank, strict=True):
        with attached(tiny_lm, {adapter.name: adapter.load()}, gates=[1.0]):
            alone = evaluate(tiny_lm, QUESTIONS, scorer="multiple_choice")
        assert score.shot_correct == tuple(alone.correct)
        assert score.shot_answer == tuple(one.prediction for one in alone.predictions)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        model = PeftModel.from_pretrained(base, str(adapter.folder)).eval()
        assert score.shot_margin is not None
        for shot, margin, right in zip(QUESTIONS, score.shot_margin, score.shot_correct, strict=True):
            each = [
                _alone(tiny_lm, model, shot.question, choice).sum().item() / len(choice)
                for choice in shot.choices
            ]
            others = each[: shot.label] + each[shot.label + 1 :]
            assert margin == pytest.approx(min(others) - each[shot.label], rel=1e-3, abs=1e-4)
            assert (margin > 0) == right
        assert score.answer_first_ppl is not None


def test_a_model_that_shares_no_prompts_gets_the_same_scores(tiny_lm, bank) -> None:
    shared = score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice")
    tiny_lm.model.config.sliding_window = 8  # shorter than the shots
    apart = score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice")
    for one, other in zip(shared, apart, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        assert one.shot_margin == pytest.approx(other.shot_margin, rel=1e-3)


def test_without_rationales_the_order_says_nothing(tiny_lm, bank) -> None:
    score = score_experts(tiny_lm, bank, SHOTS[1:2], max_new_tokens=1)[0]
    assert score.answer_first_ppl is None
    assert score.num_rationales == 0


def test_listed_choices_are_generated(tiny_lm, bank) -> None:
    scores = score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice", listed=True, max_new_tokens=3)
    assert all(score.shot_margin is None for score in scores)


def test_invariant_base_model_is_left_as_it_was(tiny_lm, bank) -> None:
    rows = [tiny_lm.template.encode("say cat", "the cat")]
    before = tiny_lm.token_nll(rows)[0]
    model = tiny_lm.model
    score_experts(tiny_lm, bank, SHOTS, max_new_tokens=2)
    assert tiny_lm.model is model
    assert (tiny_lm.token_nll(rows)[0] == before).all()
    assert not any(module._forward_hooks for module in model.modules())


def test_invariant_adapters_that_share_batches_change_no_score(tiny_lm, bank) -> None:
    together = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    apart = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4, adapters_at_once=1)
    for one, other in zip(together, apart, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        assert one.shot_answer == other.shot_answer


def test_an_adapter_of_the_output_embedding_is_scored_alone(tiny_lm, tiny_model_folder, lora_folder) -> None:
    bank = bank_of(lora_folder("plain"), lora_folder("head", target_modules=["lm_head", "q_proj"]))
    head = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=2)[0]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder), str(bank["head"].folder)
    ).eval()
    expected = _alone(tiny_lm, model, SHOTS[1].request, SHOTS[1].output).mean().item()
    assert head.shot_nll[1] == pytest.approx(expected, rel=1e-3)


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
        bank = Bank([_change(bank["first"], lambda key, value: value * 2)])
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


def test_failures_stop_no_other_adapter(tiny_lm, bank, lora_folder) -> None:
    expected = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    wider = _change(
        bank_of(lora_folder("wider"))["wider"], lambda key, value: value.repeat(1, 2) if "A" in key else value
    )
    huge = _change(bank_of(lora_folder("huge"))["huge"], lambda key, value: value * 1e30)
    torn, pickled, nan, changed = [
        bank_of(lora_folder(name))[name] for name in ("torn", "pickled", "nan", "changed")
    ]
    (torn.folder / WEIGHTS).write_bytes((torn.folder / WEIGHTS).read_bytes()[:-50])
    (pickled.folder / WEIGHTS).rename(pickled.folder / "adapter_model.bin")
    weights = load_file(nan.folder / WEIGHTS)
    save_file({key: value * float("nan") for key, value in weights.items()}, nan.folder / WEIGHTS)
    save_file({key: value * 2 for key, value in weights.items()}, changed.folder / WEIGHTS)
    bad = [wider, huge, torn, pickled, nan, changed]
    done = []
    scores = score_experts(tiny_lm, Bank([*bank, *bad]), SHOTS, max_new_tokens=4, progress=done.append)
    assert set(scores.failures) == {adapter.name for adapter in bad}
    assert "another base" in scores.failures["wider"]
    assert "got NaN or inf on a: its weights overflow in float32" in scores.failures["huge"]
    assert "sha256" in scores.failures["changed"]
    assert sum(done) == 9 * len(SHOTS)
    assert [score.name for score in scores] == [score.name for score in expected]
    for one, other in zip(scores, expected, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        assert one.shot_answer == other.shot_answer


def test_weights_that_are_nan_from_the_start_are_a_failure(tiny_lm, bank, lora_folder) -> None:
    folder = lora_folder("nan")
    entry = describe(folder, "nan")
    weights = load_file(folder / WEIGHTS)
    save_file({key: value * float("nan") for key, value in weights.items()}, folder / WEIGHTS)
    nan = Adapter(folder, entry.model_copy(update={"sha256": sha256_of(folder / WEIGHTS)}))
    scores = score_experts(tiny_lm, Bank([*bank, nan]), SHOTS, max_new_tokens=1)
    assert "expected finite weights" in scores.failures["nan"]
    assert len(scores) == 3


def test_each_score_is_told_once_as_soon_as_it_is_known(tiny_lm, bank, tmp_path) -> None:
    told: list[str] = []
    store = ScoreStore(tmp_path / "scores.jsonl")
    settings = {"max_new_tokens": 1, "store": store, "on_score": lambda score: told.append(score.name)}
    score_experts(tiny_lm, bank, SHOTS, **settings)
    assert sorted(told) == bank.names
    done: list[int] = []
    score_experts(tiny_lm, bank, SHOTS, progress=done.append, **settings)
    assert sorted(told) == sorted(bank.names * 2)
    assert sum(done) == 9


def test_where_no_adapter_can_be_scored_the_first_reason_is_given(tiny_lm, lora_folder) -> None:
    wider = _change(
        bank_of(lora_folder("wider"))["wider"], lambda key, value: value.repeat(1, 2) if "A" in key else value
    )
    with pytest.raises(AdapterError, match=r"at least one adapter.*got 1 that cannot; wider: .*another base"):
        score_experts(tiny_lm, Bank([wider]), SHOTS)


def test_bad_input_is_refused_before_anything_is_computed(tiny_lm, bank) -> None:
    with pytest.raises(ConfigError, match="got an empty bank"):
        score_experts(tiny_lm, Bank([]), SHOTS)
    with pytest.raises(ExampleError, match="expected at least one shot"):
        score_experts(tiny_lm, bank, [])
    with pytest.raises(ConfigError, match="adapters_at_once must be at least 1, got 0"):
        score_experts(tiny_lm, bank, SHOTS, adapters_at_once=0)
    with pytest.raises(ConfigError, match="memory_mb must be at least 1, got 0"):
        score_experts(tiny_lm, bank, SHOTS, memory_mb=0)
    with pytest.raises(ConfigError, match="did you mean 'number'"):
        score_experts(tiny_lm, bank, SHOTS, scorer="numbers")
    with pytest.raises(ExampleError, match="scorer number expects a number in the answer of a"):
        score_experts(tiny_lm, bank, SHOTS, scorer="number")
    with pytest.raises(ExampleError, match=r"a: expected choices, two or more, and label"):
        score_experts(tiny_lm, bank, SHOTS, scorer="multiple_choice")


def test_a_shot_longer_than_the_context_is_named_with_both_lengths(tiny_lm, bank) -> None:
    long = Example("count", "yes " * 600, id="endless")
    with pytest.raises(
        ExampleError, match=r"shot endless: expected at most 512 tokens.*, got \d{3,4}: shorten"
    ):
        score_experts(tiny_lm, bank, [*SHOTS, long])
