"""Drawing a token: the distribution, top_p, seeds, and independence of small errors."""

import pytest
import torch

from kshot.serving.sampling import Sampler, nucleus

LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0])


def draws(sampler: Sampler, count: int, logits: torch.Tensor = LOGITS) -> list[int]:
    return [sampler.pick(logits) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_against_softmax_with_temperature(temperature: float) -> None:
    found = draws(Sampler(temperature, 1.0, seed=1), 4000)
    shares = torch.bincount(torch.tensor(found), minlength=5) / len(found)
    torch.testing.assert_close(shares, (LOGITS / temperature).softmax(0), rtol=0, atol=0.03)


def test_top_p_keeps_the_likeliest_alone() -> None:
    probs = torch.tensor([0.1, 0.5, 0.05, 0.3, 0.05])
    assert nucleus(probs, 0.5).tolist() == pytest.approx([0, 0.5, 0, 0, 0])
    assert nucleus(probs, 0.6).tolist() == pytest.approx([0, 0.5, 0, 0.3, 0])
    assert nucleus(probs, 1e-9).tolist() == pytest.approx([0, 0.5, 0, 0, 0])
    assert set(draws(Sampler(1.0, 0.75, seed=2), 500)) == {2, 4}


def test_the_smallest_temperature_is_the_likeliest_token() -> None:
    assert set(draws(Sampler(1e-300, 1.0, seed=3), 50)) == {2}


def test_seeds() -> None:
    assert draws(Sampler(1, 1, seed=7), 50) == draws(Sampler(1, 1, seed=7), 50)
    assert draws(Sampler(1, 1, seed=7), 50) != draws(Sampler(1, 1, seed=8), 50)
    assert draws(Sampler(1, 1, seed=None), 50) != draws(Sampler(1, 1, seed=None), 50)
    assert draws(Sampler(1, 1, seed=-(2**63)), 5)
    assert draws(Sampler(1, 1, seed=2**63 - 1), 5)


def test_invariant_rounding_does_not_change_draws() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    shifted = logits + 1e-6 * torch.randn(5000, generator=torch.Generator().manual_seed(2))
    assert draws(Sampler(1, 1, seed=7), 200, logits) == draws(Sampler(1, 1, seed=7), 200, shifted)
