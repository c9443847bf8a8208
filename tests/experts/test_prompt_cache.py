"""Prompts that are computed once give what computing them again gives."""

import numpy as np
import pytest
import torch

from kshot.batching import pad_left
from kshot.decoding import greedy_decode
from kshot.examples import Example
from kshot.experts import score_experts
from kshot.experts.prompt_cache import cache_prompts, cached_nll, join_caches, keeps_all_tokens
from kshot.experts.shared_prompts import separate_nll, share_prompt
from kshot.prompts import TokenisedExample

from .banks import bank_of

PROMPTS = [(5, 6, 7, 8, 9), (40, 41), (11, 12, 13)]
TARGETS = [[(20, 21, 22), (23,)], [(24, 25)], [(26,), (27, 28, 29, 30), (31, 32)]]
GROUPS = [
    [TokenisedExample(prompt + target, len(prompt)) for target in targets]
    for prompt, targets in zip(PROMPTS, TARGETS, strict=True)
]
SHOTS = [
    Example("count to three and then tell what comes", "four", rationale="three and one", id="a"),
    Example("say cat", "the cat", id="b"),
]


@torch.inference_mode()
@pytest.mark.parametrize("width", [4, 7])
def test_against_targets_alone(tiny_lm, width) -> None:
    cache = cache_prompts(tiny_lm.model, PROMPTS, tiny_lm.pad_id, width)
    found = cached_nll(tiny_lm.model, cache, [share_prompt(group) for group in GROUPS], tiny_lm.pad_id)
    alone = separate_nll(tiny_lm.model, GROUPS, tiny_lm.pad_id)
    for row, expected in zip(found, alone, strict=True):
        for one, other in zip(row, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)


@torch.inference_mode()
def test_an_answer_after_the_targets_is_that_of_a_fresh_pass(tiny_lm) -> None:
    parts = [cache_prompts(tiny_lm.model, some, tiny_lm.pad_id, 4) for some in (PROMPTS[1:], PROMPTS[:1])]
    cached_nll(tiny_lm.model, parts[1], [share_prompt(GROUPS[0])], tiny_lm.pad_id)
    joined = join_caches(parts, [2, 0, 1])
    batch = pad_left([TokenisedExample(ids, len(ids)) for ids in PROMPTS], tiny_lm.pad_id, tiny_lm.device)
    settings = {"end_ids": [0], "max_new_tokens": 6}
    fresh = greedy_decode(tiny_lm.model, batch, **settings)
    assert greedy_decode(tiny_lm.model, batch, cache=joined.to_cache(tiny_lm.model), **settings) == fresh
    assert any(fresh)


def test_a_sliding_window_keeps_not_all_tokens(tiny_lm) -> None:
    assert keeps_all_tokens(tiny_lm.model)
    tiny_lm.model.config.layer_types = ["sliding_attention"] * tiny_lm.model.config.num_hidden_layers
    tiny_lm.model.config.sliding_window = 512
    assert not keeps_all_tokens(tiny_lm.model)


def test_scores_are_those_of_a_model_without_cached_prompts(tiny_lm, lora_folder, monkeypatch) -> None:
    bank = bank_of(lora_folder("first", seed=1), lora_folder("second", seed=2, r=2))
    once = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=5)
    monkeypatch.setattr("kshot.experts.shot_passes.keeps_all_tokens", lambda model: False)
    again = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=5)
    for one, other in zip(once, again, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        assert one.shot_answer == other.shot_answer


def test_prompts_are_run_once(tiny_lm, lora_folder) -> None:
    bank = bank_of(lora_folder("first", seed=1))
    seen = []
    handle = tiny_lm.model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape[1])
    )
    score_experts(tiny_lm, bank, SHOTS[:1], max_new_tokens=3)
    handle.remove()
    prompt = len(tiny_lm.template.encode_prompt(SHOTS[0].request))
    probing = seen.index(prompt - 1)  # whether prompts can be shared at all
    assert [length >= prompt for length in seen[probing + 1 :]].count(True) <= 1  # the targets' own tokens
    assert seen[probing + 2 :] == [1] * len(seen[probing + 2 :])
