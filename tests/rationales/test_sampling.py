"""Sampling whose rows do not depend on each other."""

import pytest
import torch

from kshot.rationales.sampling import SampledChoice


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_against_softmax(temperature: float) -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0])
    choice = SampledChoice(temperature, [11])
    draws = torch.cat([choice(logits_V[None], [0]) for _ in range(4000)])
    shares_V = torch.bincount(draws, minlength=4) / len(draws)
    expected_V = torch.softmax(logits_V / temperature, dim=0)
    error_V = (expected_V * (1 - expected_V) / len(draws)).sqrt()
    assert torch.all((shares_V - expected_V).abs() < 4 * error_V)


def test_invariant_a_row_is_the_same_in_any_batch() -> None:
    logits_TBV = torch.randn(20, 3, 50, generator=torch.Generator().manual_seed(0))
    together = SampledChoice(1.0, [5, 6, 7])
    alone = SampledChoice(1.0, [7])
    tokens_TB = torch.stack([together(logits_BV, [0, 1, 2]) for logits_BV in logits_TBV])
    tokens_T = torch.cat([alone(logits_BV[2:], [0]) for logits_BV in logits_TBV])
    assert torch.equal(tokens_TB[:, 2], tokens_T)
    assert not torch.equal(tokens_TB[:, 0], tokens_TB[:, 1])


def test_impossible_tokens_are_never_taken() -> None:
    logits_BV = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    choice = SampledChoice(2.0, [0])
    assert {int(choice(logits_BV, [0])) for _ in range(50)} == {1}
