"""Shared prompts: targets in one row against targets that stand alone."""

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from kshot.errors import ConfigError
from kshot.experts.shared_prompts import nll_of, separate_nll, share_prompt, shared_nll, shares_prompts
from kshot.prompts import TokenisedExample


def _target(prompt: tuple[int, ...], target: tuple[int, ...]) -> TokenisedExample:
    return TokenisedExample(prompt + target, len(prompt))


GROUPS = [
    [_target((4, 8, 15, 16), (23, 42)), _target((4, 8, 15, 16), (7,)), _target((4, 8, 15, 16), (9, 9, 9, 1))],
    [_target((6,), (2, 3, 5))],
    [_target((11, 12, 13, 14, 15, 16), (1, 2)), _target((11, 12, 13, 14, 15, 16), (1, 2, 3))],
]


@torch.inference_mode()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_against_the_same_targets_alone(tiny_lm, attention) -> None:
    tiny_lm.model.set_attn_implementation(attention)
    together = shared_nll(tiny_lm.model, [share_prompt(group) for group in GROUPS], tiny_lm.pad_id)
    for group, found in zip(GROUPS, together, strict=True):
        alone = tiny_lm.token_nll(group)
        for one, other in zip(found, alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_separate_rows_give_the_same_in_the_same_order(tiny_lm) -> None:
    together = shared_nll(tiny_lm.model, [share_prompt(group) for group in GROUPS], tiny_lm.pad_id)
    apart = separate_nll(tiny_lm.model, GROUPS, tiny_lm.pad_id)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(np.concatenate(one), np.concatenate(other), rtol=1e-4, atol=1e-5)


def test_layout_as_in_the_docstring() -> None:
    row = share_prompt([_target((1, 2, 3), (51, 52, 53)), _target((1, 2, 3), (61, 62))])
    assert row.input_ids == (1, 2, 3, 51, 52, 53, 3, 61, 62)
    assert row.blocks == (0, 0, 1, 1, 1, 1, 2, 2, 2)
    assert row.positions == (0, 1, 2, 3, 4, 5, 2, 3, 4)
    assert row.labels == (-100, -100, -100, 51, 52, 53, -100, 61, 62)
    assert row.target_lengths == (3, 2)


def test_different_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected targets of one prompt, got 2 prompts"):
        share_prompt([_target((1, 2), (3,)), _target((1, 4), (3,))])


def test_against_cross_entropy_over_more_tokens_than_one_softmax_takes() -> None:
    draw = torch.Generator().manual_seed(0)
    logits_LV = torch.randn(300, 17, generator=draw)
    targets_L = torch.randint(17, (300,), generator=draw)
    expected = -logits_LV.log_softmax(-1)[torch.arange(300), targets_L].double().numpy()
    np.testing.assert_allclose(nll_of(logits_LV, targets_L), expected, rtol=1e-5)


def test_a_llama_shares_prompts(tiny_lm) -> None:
    assert shares_prompts(tiny_lm.model, longest=100)


def test_positions_that_are_not_given_are_noticed() -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4)
    assert not shares_prompts(BloomForCausalLM(config).eval(), longest=20)


def test_a_sliding_window_is_kept_to() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=64, num_key_value_heads=2, sliding_window=32, **sizes)
    model = MistralForCausalLM(config).eval()
    assert shares_prompts(model, longest=32)
    assert not shares_prompts(model, longest=33)
