"""One module's Gram matrix: against dense weight changes, by both ways and at any tile size."""

import numpy as np
import pytest
import torch

from kshot.experts.gram import module_gram
from kshot.mixture import LoraFactors


def _factors(ranks: tuple[int, ...], outputs: int, inputs: int, seed: int = 0) -> list[LoraFactors]:
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(1, inputs, generator=draw)
    return [
        LoraFactors(
            common + torch.randn(r, inputs, generator=draw),
            1 + torch.randn(outputs, r, generator=draw),
            0.5 + place,
        )
        for place, r in enumerate(ranks)
    ]


def _dense(factors: list[LoraFactors]) -> np.ndarray:
    return torch.stack(
        [(one.scaling * one.B_Or.double() @ one.A_rI.double()).ravel() for one in factors]
    ).numpy()


SMALL = ((4, 1, 4, 2, 9, 2), 96, 80)  # low ranks for the layer: through the factors
HIGH = ((40, 3, 40, 64, 40), 24, 48)  # ranks beyond the inputs: through strips


@pytest.mark.parametrize(
    ("ranks", "outputs", "inputs"), [SMALL, HIGH, ((3_000, 5, 2_500), 12, 10), ((1,), 1, 1)]
)
@pytest.mark.parametrize("tile_ranks", [1, 6, 1_024])
def test_against_dense_weight_changes(
    ranks: tuple[int, ...], outputs: int, inputs: int, tile_ranks: int
) -> None:
    factors = _factors(ranks, outputs, inputs)
    found, dense = module_gram(factors, tile_ranks=tile_ranks), _dense(factors)
    norms = np.linalg.norm(dense, axis=1)
    np.testing.assert_allclose(found.norms_n, norms, rtol=1e-12)
    np.testing.assert_allclose(found.cosines_nn, dense @ dense.T / np.outer(norms, norms), atol=1e-6)
    np.testing.assert_array_equal(found.cosines_nn, found.cosines_nn.T)
    assert (found.norms_n <= found.bounds_n * (1 + 1e-12)).all()


@pytest.mark.parametrize(("ranks", "outputs", "inputs"), [SMALL, HIGH])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_invariant_under_a_badly_conditioned_change_of_basis(
    ranks: tuple[int, ...], outputs: int, inputs: int, condition: float
) -> None:
    factors = _factors(ranks, outputs, inputs)
    turned = []
    for place, one in enumerate(factors):
        draw = np.random.default_rng(place)
        left, right = (np.linalg.qr(draw.normal(size=(one.r, one.r)))[0] for _ in range(2))
        R_rr = torch.from_numpy(left * np.geomspace(1, condition, one.r) @ right)
        A_rI, B_Or = R_rr @ one.A_rI.double(), one.B_Or.double() @ torch.linalg.inv(R_rr)
        turned.append(LoraFactors(A_rI, B_Or, one.scaling))
    before, after = module_gram(factors), module_gram(turned)
    np.testing.assert_allclose(after.cosines_nn, before.cosines_nn, atol=1e-6)
    np.testing.assert_allclose(after.norms_n, before.norms_n, rtol=1e-6)


def test_a_change_of_zero_has_no_direction() -> None:
    factors = _factors((2, 3, 2), 8, 6)
    factors[1] = LoraFactors(factors[1].A_rI, torch.zeros(8, 3), 1.0)
    found = module_gram(factors)
    assert found.norms_n[1] == 0
    assert (found.cosines_nn[1] == 0).all()
    assert found.bounds_n[1] == 0
