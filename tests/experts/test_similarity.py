"""Similarity: against dense weight changes, unchanged by a change of basis, estimated, and its refusals."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.bank.fingerprint import fingerprint
from kshot.errors import AdapterError, ConfigError
from kshot.experts.similarity import (
    Similarity,
    SimilarityMode,
    adapter_similarity,
    fingerprint_similarity,
)
from kshot.mixture import LoraExpert, LoraFactors

from .banks import bank_of

LoraFolder = Callable[..., Path]
SHAPES = {"q": (12, 10), "v": (4, 10), "down": (10, 16)}  # outputs, inputs


@dataclass(frozen=True)
class InMemory:
    """An adapter that lies in memory."""

    name: str
    factors: dict[str, LoraFactors]

    def load(self) -> LoraExpert:
        return LoraExpert(self.name, None, self.factors)


def _adapter(name: str, seed: int, modules: dict[str, tuple[int, float]], dtype=torch.float32) -> InMemory:
    """Random factors from {module: (r, scaling)}, with a part that all adapters share."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(99)
    factors = {}
    for module, (r, scaling) in modules.items():
        outputs, inputs = SHAPES[module]
        A_rI = torch.randn(r, inputs, generator=draw) + torch.randn(1, inputs, generator=common)
        B_Or = torch.randn(outputs, r, generator=draw) + torch.randn(outputs, 1, generator=common)
        factors[module] = LoraFactors(A_rI.to(dtype), B_Or.to(dtype), scaling)
    return InMemory(name, factors)


def _dense_cosine(one: InMemory, other: InMemory) -> float:
    def change(adapter: InMemory, module: str) -> torch.Tensor:
        if module not in adapter.factors:
            return torch.zeros(SHAPES[module], dtype=torch.float64)
        factors = adapter.factors[module]
        return factors.scaling * factors.B_Or.double() @ factors.A_rI.double()

    a, b = (torch.cat([change(adapter, module).ravel() for module in SHAPES]) for adapter in (one, other))
    return float(a @ b / (a.norm() * b.norm()))


MIXED = [
    _adapter("plain", 1, {"q": (4, 2.0), "v": (4, 2.0)}),
    _adapter("patterned", 2, {"q": (1, 8.0), "v": (7, 0.25), "down": (3, 1.0)}),
    _adapter("elsewhere", 3, {"down": (16, 0.5)}),
    _adapter("negative", 4, {"q": (3, -1.5)}),
    _adapter("half", 5, {"v": (2, 1.0), "down": (5, 1e-3)}, torch.bfloat16),
]

an_adapter = st.builds(
    lambda seed, modules: _adapter("", seed, modules),
    st.integers(0, 10_000),
    st.dictionaries(
        st.sampled_from(sorted(SHAPES)),
        st.tuples(st.integers(1, 9), st.floats(0.01, 100)),
        min_size=1,
    ),
)


@given(st.lists(an_adapter, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_against_dense_weight_changes(drawn: list[InMemory]) -> None:
    adapters = [InMemory(str(index), one.factors) for index, one in enumerate(drawn)]
    found = adapter_similarity(adapters)
    for one, other in itertools.product(adapters, repeat=2):
        assert found.between(one.name, other.name) == pytest.approx(_dense_cosine(one, other), abs=1e-6)


def test_against_dense_on_mixed_ranks_targets_scalings_and_types() -> None:
    found = adapter_similarity(MIXED)
    dense = [[_dense_cosine(one, other) for other in MIXED] for one in MIXED]
    assert found.names == ("plain", "patterned", "elsewhere", "negative", "half")
    assert found.matrix.dtype == np.float64
    np.testing.assert_allclose(found.matrix, dense, atol=1e-6)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)
    np.testing.assert_array_equal(np.diag(found.matrix), np.ones(5))
    assert found.between("elsewhere", "negative") == 0  # no module in common


def _turned(adapter: InMemory, seed: int) -> InMemory:
    """Rewrite (A, B) as (RA, BR⁻¹), which leaves the model as it was."""
    draw = torch.Generator().manual_seed(seed)
    factors = {}
    for module, old in adapter.factors.items():
        R_rr = torch.randn(old.r, old.r, generator=draw, dtype=torch.float64) + 3 * torch.eye(old.r)
        A_rI, B_Or = R_rr @ old.A_rI.double(), old.B_Or.double() @ torch.linalg.inv(R_rr)
        factors[module] = LoraFactors(A_rI, B_Or, old.scaling)
    return InMemory(adapter.name, factors)


@pytest.mark.parametrize("seed", range(5))
def test_invariant_under_a_change_of_basis(seed: int) -> None:
    turned = [_turned(adapter, seed) for adapter in MIXED]
    before, after = adapter_similarity(MIXED), adapter_similarity(turned)
    np.testing.assert_allclose(after.matrix, before.matrix, atol=1e-6)


def test_the_paper_mode_changes_with_the_basis() -> None:
    pair = [_adapter("a", 1, {"q": (4, 1.0)}), _adapter("b", 2, {"q": (4, 1.0)})]
    before = adapter_similarity(pair, mode="paper").between("a", "b")
    after = adapter_similarity([_turned(pair[0], 0), pair[1]], mode="paper").between("a", "b")
    assert abs(after - before) > 0.01


def test_invariant_order_scale_and_a_copy() -> None:
    factors = {module: LoraFactors(f.A_rI * 3, f.B_Or, f.scaling) for module, f in MIXED[1].factors.items()}
    found = adapter_similarity([*MIXED[::-1], InMemory("copy", factors)])
    assert found.between("copy", "patterned") == pytest.approx(1, abs=1e-6)
    forwards = adapter_similarity(MIXED)
    np.testing.assert_allclose(found.among(forwards.names), forwards.matrix, atol=1e-6)


@pytest.mark.parametrize("mode", ["delta", "paper"])
@pytest.mark.parametrize("held_bytes", [1, 3_000])
def test_invariant_memory_for_weights(mode: SimilarityMode, held_bytes: int) -> None:
    ranks = {"q": (4, 0.3), "v": (2, 5.0), "down": (3, 1.0)}
    bank = [_adapter(str(seed), seed, ranks) for seed in range(6)]
    whole, parts = adapter_similarity(bank, mode), adapter_similarity(bank, mode, held_bytes=held_bytes)
    np.testing.assert_allclose(parts.matrix, whole.matrix, atol=1e-12)


def test_against_per_matrix_cosines_in_paper_mode() -> None:
    ranks = {"q": (4, 1.0), "v": (2, 5.0)}
    adapters = [
        _adapter("a", 1, ranks),
        _adapter("b", 2, {**ranks, "down": (3, 1.0)}),
        _adapter("c", 3, {"v": (2, 0.1), "down": (3, 1.0)}),
    ]
    found = adapter_similarity(adapters, mode="paper")
    for one, other in itertools.combinations(adapters, 2):
        cosines = [
            torch.cosine_similarity(x.double().ravel(), y.double().ravel(), dim=0)
            for module in one.factors.keys() & other.factors.keys()
            for x, y in (
                (one.factors[module].A_rI, other.factors[module].A_rI),
                (one.factors[module].B_Or, other.factors[module].B_Or),
            )
        ]
        assert found.between(one.name, other.name) == pytest.approx(np.mean(cosines), abs=1e-12)


@pytest.mark.parametrize("mode", ["delta", "paper"])
def test_invariant_ones_on_the_diagonal_and_symmetry(mode: SimilarityMode) -> None:
    bank = [_adapter(str(seed), seed, {"q": (4, 0.3), "v": (2, 5.0), "down": (3, 1.0)}) for seed in range(50)]
    found = adapter_similarity(bank, mode=mode)
    np.testing.assert_array_equal(np.diag(found.matrix), np.ones(50))
    np.testing.assert_array_equal(found.matrix, found.matrix.T)


def test_golden_by_hand() -> None:
    # ΔW of a: [[2, 0], [0, 0]]; of b: [[3, 4], [0, 0]]; cosine 6 / (2 * 5). A alone: 0.6; B alone: 1.
    a = LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [0.0]]), 2.0)
    b = LoraFactors(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5], [0.0]]), 2.0)
    pair = [InMemory("a", {"q": a}), InMemory("b", {"q": b})]
    assert adapter_similarity(pair).between("a", "b") == pytest.approx(0.6, abs=1e-6)
    assert adapter_similarity(pair, mode="paper").between("a", "b") == pytest.approx(0.8, abs=1e-15)


@pytest.mark.parametrize("mode", ["delta", "paper", "fingerprint"])
def test_reads_adapter_folders_and_tells_of_the_work_done(
    lora_folder: LoraFolder, mode: SimilarityMode
) -> None:
    bank = bank_of(*(lora_folder(name, seed=seed) for seed, name in enumerate(["a", "b", "c"])))
    units: list[int] = []
    found = adapter_similarity(bank, mode, units.append)
    assert sum(units) == 3
    in_memory = [InMemory(one.name, one.load().factors) for one in bank]
    np.testing.assert_array_equal(adapter_similarity(in_memory, mode).matrix, found.matrix)


@dataclass(frozen=True)
class Fingerprinted:
    """An adapter whose fingerprint is stored, and that cannot be read."""

    name: str
    fingerprint: np.ndarray | None

    def load(self) -> LoraExpert:
        raise AdapterError("read")


def test_a_stored_fingerprint_is_used() -> None:
    stored = [Fingerprinted(one.name, fingerprint(one.load())) for one in MIXED]
    found = adapter_similarity(stored, mode="fingerprint")
    np.testing.assert_array_equal(found.matrix, adapter_similarity(MIXED, mode="fingerprint").matrix)
    with pytest.raises(AdapterError, match="read"):
        adapter_similarity([*stored, Fingerprinted("none", None)], mode="fingerprint")


def test_against_exact_cosines_in_fingerprint_mode() -> None:
    exact, estimated = adapter_similarity(MIXED), adapter_similarity(MIXED, mode="fingerprint")
    np.testing.assert_allclose(estimated.matrix, exact.matrix, atol=4 / 64)  # four standard errors
    np.testing.assert_array_equal(np.diag(estimated.matrix), np.ones(5))


def test_refuses_fingerprints_that_are_none() -> None:
    with pytest.raises(ConfigError, match=r"for each of 2 names, got an array of shape \(3, 8\): take"):
        fingerprint_similarity(["a", "b"], np.ones((3, 8)))
    with pytest.raises(AdapterError, match="adapter 'b': expected a change of the weights, got zero"):
        fingerprint_similarity(["a", "b"], np.array([[1.0, 0.0], [0.0, 0.0]]))


def test_mean_pairwise() -> None:
    matrix = np.array([[1.0, 0.1, 0.2], [0.1, 1.0, 0.6], [0.2, 0.6, 1.0]])
    similarity = Similarity(("a", "b", "c"), matrix)
    assert similarity.mean_pairwise(["a", "b", "c"]) == pytest.approx(0.3)
    assert similarity.mean_pairwise(["c", "b"]) == 0.6
    assert similarity.mean_pairwise(["b"]) == similarity.mean_pairwise([]) == 0
    with pytest.raises(ConfigError, match="similarity is known, got 'd'; nearest: "):
        similarity.mean_pairwise(["a", "d"])


@pytest.mark.parametrize(
    ("names", "matrix", "message"),
    [
        (("a", "a"), np.eye(2), "expected distinct adapter names, got a, a"),
        (("a", "b"), np.eye(3), r"\(2, 2\) for 2 names, got one of shape \(3, 3\)"),
        (("a", "b"), np.array([[1, 0.5], [0.4, 1]]), "expected a symmetric matrix"),
        (("a", "b"), np.array([[1, np.nan], [np.nan, 1]]), "of finite numbers"),
    ],
)
def test_refuses_a_matrix_that_is_none(names: tuple[str, ...], matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Similarity(names, matrix)


def test_refuses_no_adapter_a_name_twice_and_an_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="expected at least one adapter to compare"):
        adapter_similarity([])
    with pytest.raises(ConfigError, match="got 'plain' twice"):
        adapter_similarity([MIXED[0], MIXED[0]])
    with pytest.raises(ConfigError, match="must be one of delta, paper, fingerprint, got 'cosine'"):
        adapter_similarity(MIXED, mode="cosine")  # type: ignore[arg-type]


def _untrained(factors: LoraFactors) -> LoraFactors:
    return LoraFactors(factors.A_rI, torch.zeros_like(factors.B_Or), factors.scaling)


def _cancelling(factors: LoraFactors) -> LoraFactors:
    """BA - (BR⁻¹)(RA): zero but for rounding."""
    R_rr = torch.tensor([[0.3, 1.7], [-1.1, 0.7]], dtype=torch.float64)
    A_rI = torch.cat([factors.A_rI, R_rr @ factors.A_rI])
    return LoraFactors(A_rI, torch.cat([factors.B_Or, -factors.B_Or @ torch.linalg.inv(R_rr)], dim=1), 1.0)


@pytest.mark.parametrize("change", [_untrained, _cancelling, lambda f: LoraFactors(f.A_rI, f.B_Or, 0.0)])
def test_refuses_an_adapter_that_changes_nothing(change: Callable[[LoraFactors], LoraFactors]) -> None:
    double = _adapter("", 1, {"q": (2, 1.0), "v": (2, 1.0)}, torch.float64)
    idle = InMemory("idle", {module: change(factors) for module, factors in double.factors.items()})
    with pytest.raises(AdapterError, match="adapter 'idle': expected a change of the weights, got zero"):
        adapter_similarity([MIXED[0], idle])


def test_refuses_adapters_of_another_base() -> None:
    other = InMemory("other", {"q": LoraFactors(torch.ones(4, 11), torch.ones(12, 4), 1.0)})
    for mode in ("delta", "paper"):
        with pytest.raises(AdapterError, match=r"in 'plain' and \(12, 11.*different base models"):
            adapter_similarity([MIXED[0], other], mode=mode)  # type: ignore[arg-type]


def test_refuses_in_paper_mode_what_has_no_matrix_cosine() -> None:
    q4, q3, v4 = ({"q": (4, 1.0)}, {"q": (3, 1.0)}, {"v": (4, 1.0)})
    with pytest.raises(
        AdapterError, match=r"q: expected equal ranks, got 4 in 'a' and 3 in 'b': use similarity mode"
    ):
        adapter_similarity([_adapter("a", 1, q4), _adapter("b", 2, q3)], mode="paper")
    with pytest.raises(
        AdapterError, match="module that 'a' and 'b' both adapt, got none: use similarity mode"
    ):
        adapter_similarity([_adapter("a", 1, q4), _adapter("b", 2, v4)], mode="paper")
    idle = InMemory("idle", {"q": _untrained(_adapter("", 1, q4).factors["q"])})
    with pytest.raises(AdapterError, match=r"adapter 'idle'.*got lora_B of q all zero: use similarity mode"):
        adapter_similarity([_adapter("a", 1, q4), idle], mode="paper")
