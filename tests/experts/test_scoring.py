"""Scoring: against a plain PEFT loop at batch 1, and against evaluation of each adapter alone."""

import math
import statistics

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from kshot.bank import Bank
from kshot.errors import ConfigError, ExampleError
from kshot.evaluation import evaluate
from kshot.examples import Example
from kshot.experts import ScoreStore, attached, score_experts
from kshot.language_model import LanguageModel

from .banks import bank_of, three_adapters
from .shots import QUESTIONS, SHOTS


@pytest.fixture
def bank(lora_folder) -> Bank:
    return three_adapters(lora_folder)


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
