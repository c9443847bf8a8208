"""Fingerprints: unbiased, within their standard error, the same for equal adapters on any machine."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from kshot.bank import Bank
from kshot.bank.fingerprint import FINGERPRINT_VERSION, NUM_FEATURES, fingerprint
from kshot.errors import AdapterError
from kshot.experts.similarity import adapter_similarity, fingerprint_similarity
from kshot.mixture import LoraExpert, LoraFactors

BUNDLED = Path(__file__).parents[2] / "banks" / "smollm2-135m"
STDERR = NUM_FEATURES**-0.5


def _expert(
    name: str, seed: int, modules: dict[str, tuple[int, int, int]], *, related: float = 0.0
) -> LoraExpert:
    """Random factors from {module: (r, outputs, inputs)}; `related` is the weight of a change all share."""
    factors = {}
    for place, (module, (r, outputs, inputs)) in enumerate(modules.items()):
        own, common = (torch.Generator().manual_seed(1_000 * place + one) for one in (seed, 999))
        A_rI = torch.cat([torch.randn(r, inputs, generator=one) for one in (own, common)])
        B_Or = torch.cat([torch.randn(outputs, r, generator=one) for one in (own, common)], dim=1)
        B_Or[:, :r] *= 1 - related
        B_Or[:, r:] *= related
        factors[module] = LoraFactors(A_rI, B_Or, 0.5)
    return LoraExpert(name, None, factors)


MANY = {f"layers.{layer}.{side}": (4, 24 if side == "v" else 48, 48) for layer in range(12) for side in "qv"}
KINDS = {
    "many modules": MANY,
    "one module of rank 1": {"q": (1, 96, 96)},
    "one module of rank 16": {"q": (16, 96, 96)},
}


def _change(expert: LoraExpert) -> np.ndarray:
    changes = [one.scaling * one.B_Or.double() @ one.A_rI.double() for one in expert.factors.values()]
    return np.concatenate([one.ravel().numpy() for one in changes])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("related", [0.0, 0.5, 0.8])
def test_against_exact_cosines(kind: str, related: float) -> None:
    experts = [_expert(str(seed), seed, KINDS[kind], related=related) for seed in range(24)]
    changes = np.stack([_change(one) for one in experts])
    changes /= np.linalg.norm(changes, axis=1, keepdims=True)
    pairs = np.triu_indices(24, k=1)
    exact = (changes @ changes.T)[pairs]
    rows = np.stack([fingerprint(one) for one in experts])
    errors = fingerprint_similarity([one.name for one in experts], rows).matrix[pairs] - exact
    assert np.sqrt((errors**2).mean()) < 1.3 * STDERR
    assert np.abs(errors).max() < 4.5 * STDERR
    assert abs(errors.mean()) < STDERR / 2


def test_against_the_bundled_bank() -> None:
    bank = Bank.open(BUNDLED)
    exact = adapter_similarity(bank)
    rows = np.stack([fingerprint(adapter.load()) for adapter in bank])
    pairs = np.triu_indices(len(bank), k=1)
    errors = (fingerprint_similarity(bank.names, rows).matrix - exact.matrix)[pairs]
    assert np.sqrt((errors**2).mean()) < 1.3 * STDERR
    assert np.abs(errors).max() < 4.5 * STDERR


def test_against_a_sketch_of_the_dense_change() -> None:
    expert = _expert("a", 1, {"layers.0.q": (3, 7, 5), "layers.0.v": (2, 4, 5)})
    want = np.zeros(NUM_FEATURES)
    for module, factors in expert.factors.items():
        dense = (factors.scaling * factors.B_Or.double() @ factors.A_rI.double()).numpy()
        sides = []
        for key, size in (
            (f"kshot {module} outputs", len(dense)),
            (f"kshot {module} inputs", dense.shape[1]),
        ):
            drawn = np.frombuffer(hashlib.shake_256(key.encode()).digest(4 * size), dtype="<u4").astype(
                np.int64
            )
            sides.append((drawn % NUM_FEATURES, np.where(drawn >> 31, 1.0, -1.0)))
        (rows, row_signs), (columns, column_signs) = sides
        places = (rows[:, None] + columns[None]) % NUM_FEATURES
        np.add.at(want, places, dense * np.outer(row_signs, column_signs))
    np.testing.assert_allclose(fingerprint(expert), want, atol=1e-6 * np.linalg.norm(want))


def test_golden_numbers_of_this_version() -> None:
    expert = LoraExpert("a", None, {"layers.0.q": LoraFactors(torch.ones(1, 2), torch.ones(1, 1), 1.0)})
    found = fingerprint(expert)
    assert FINGERPRINT_VERSION == 1  # another sketch is another version
    assert found.dtype == np.float32
    assert found.shape == (4_096,)
    large = {int(place): round(float(found[place]), 3) for place in np.flatnonzero(np.abs(found) > 1e-3)}
    assert large == {1440: -1, 2209: -1}


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_invariant_under_a_change_of_basis(size: float) -> None:
    expert = _expert("a", 1, MANY)
    turned = {}
    for module, old in expert.factors.items():
        draw = torch.Generator().manual_seed(len(turned))
        R_rr = torch.randn(old.r, old.r, generator=draw, dtype=torch.float64) + 3 * torch.eye(old.r)
        A_rI, B_Or = size * R_rr @ old.A_rI.double(), old.B_Or.double() @ torch.linalg.inv(R_rr) / size
        turned[module] = LoraFactors(A_rI, B_Or, old.scaling)
    before, after = fingerprint(expert), fingerprint(LoraExpert("b", None, turned))
    assert np.linalg.norm(after - before) < 1e-6 * np.linalg.norm(before)


def test_invariant_rank_added_by_zeros_and_linear_in_scaling() -> None:
    expert = _expert("a", 1, {"q": (3, 8, 6)})
    old = expert.factors["q"]
    padded = LoraFactors(
        torch.cat([old.A_rI, torch.zeros(2, 6), torch.ones(1, 6)]),
        torch.cat([old.B_Or, torch.ones(8, 2), torch.zeros(8, 1)], dim=1),
        -3 * old.scaling,
    )
    found = fingerprint(LoraExpert("b", None, {"q": padded}))
    np.testing.assert_allclose(found, -3 * fingerprint(expert), atol=1e-5)


def test_invariant_types_of_weights() -> None:
    expert = _expert("a", 1, {"q": (3, 8, 6)})
    old = expert.factors["q"]
    half = LoraFactors(old.A_rI.bfloat16(), old.B_Or.bfloat16(), old.scaling)
    whole = LoraFactors(half.A_rI.double(), half.B_Or.double(), old.scaling)
    one, other = (fingerprint(LoraExpert("b", None, {"q": factors})) for factors in (half, whole))
    np.testing.assert_array_equal(one, other)


def test_refuses_a_change_that_cancels() -> None:
    A_rI, B_Or = torch.randn(2, 6), torch.randn(8, 2)
    factors = LoraFactors(torch.cat([A_rI, 0.3 * A_rI]), torch.cat([B_Or, -B_Or / 0.3], dim=1), 1.0)
    with pytest.raises(AdapterError, match="adapter 'idle': expected a change of the weights"):
        fingerprint(LoraExpert("idle", None, {"q": factors}))


@pytest.mark.parametrize("value", [0.0, 1e30])
def test_refuses_what_has_no_fingerprint(value: float) -> None:
    factors = LoraFactors(torch.full((2, 3), 1e30), torch.full((4, 2), value), 1.0)
    with pytest.raises(
        AdapterError, match=r"adapter 'idle': expected a change of the weights, other than zero"
    ):
        fingerprint(LoraExpert("idle", None, {"q": factors}))
