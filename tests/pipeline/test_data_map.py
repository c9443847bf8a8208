"""The map of the data: who is on it, where, and that it does not depend on chance."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kshot.corpus import select_data
from kshot.examples import Example
from kshot.pipeline import data_map
from kshot.pipeline.data_map import write_map
from kshot.run_folder import DATA_MAP

D, BUDGET = 12, 5


@dataclass
class Rows:
    """What a map asks of a pool."""

    count: int

    def source_of(self, index: int) -> str:
        return f"source-{index % 2}"

    def examples_at(self, indices: np.ndarray) -> list[Example]:
        long = "word " * 40
        return [Example(instruction=f"row {i} {long}", output="x", id=str(i)) for i in indices.tolist()]


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _written(folder: Path, vectors_MD: np.ndarray, strategy: str = "max") -> dict[str, Any]:
    draw = np.random.default_rng(1)
    shots_KD = _unit(draw.normal(size=(3, D)))
    shots = [Example(instruction=f"shot {i}", output="x", id=f"s{i}") for i in range(3)]
    task = SimpleNamespace(data=SimpleNamespace(strategy=strategy))
    inputs: Any = SimpleNamespace(pool=Rows(len(vectors_MD)), shots=shots, task=task)
    budget = min(BUDGET, len(np.unique(vectors_MD, axis=0)))
    selection = select_data(vectors_MD, shots_KD, budget=budget, threshold=1.0, strategy=strategy)  # type: ignore[arg-type]
    write_map(inputs, folder, np.arange(len(vectors_MD)), vectors_MD, shots_KD, selection)
    found: dict[str, Any] = json.loads((folder / DATA_MAP).read_text())
    return found


@pytest.mark.parametrize("strategy", ["max", "centroid"])
def test_against_numpy(tmp_path: Path, strategy: str) -> None:
    spread = np.array([9.0, 4.0] + [0.3] * (D - 2))
    vectors_MD = _unit(np.random.default_rng(0).normal(size=(300, D)) * spread)
    found = _written(tmp_path, vectors_MD, strategy)
    centred = vectors_MD - vectors_MD.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    wanted = centred @ axes[:2].T
    got = np.array([point[:2] for point in found["pool"]])
    np.testing.assert_allclose(np.abs(got), np.abs(wanted), atol=2e-3)
    assert found["explained"] == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), abs=1e-3)
    assert (len(found["pool"]), len(found["kept"]), len(found["shots"])) == (300, BUDGET, 3)
    assert found["kept"][0][3] == max(point[3] for point in found["pool"])
    assert found["shots"][1][2:] == [None, None, "s1: shot 1"]
    assert len(found["pool"][0][4]) <= data_map.TEXT_LENGTH
    assert found["sources"] == ["source-0", "source-1"]


def test_invariant_same_rows_same_bytes(tmp_path: Path) -> None:
    vectors_MD = _unit(np.random.default_rng(0).normal(size=(60, D)))
    first = _written(tmp_path, vectors_MD)
    assert _written(tmp_path, vectors_MD) == first


def test_large_pool_is_sampled_and_rows_without_a_vector_have_no_place(tmp_path: Path) -> None:
    count = data_map.MAX_ROWS + 500
    vectors_MD = _unit(np.random.default_rng(0).normal(size=(count, D)))
    vectors_MD[::2] = 0
    found = _written(tmp_path, vectors_MD)
    assert 0 < len(found["pool"]) < data_map.MAX_ROWS
    assert found["num_comparable"] == count
    assert np.isfinite([point[:2] for point in found["pool"]]).all()


def test_rows_that_are_all_alike(tmp_path: Path) -> None:
    vectors_MD = _unit(np.ones((8, D)))
    found = _written(tmp_path, vectors_MD)
    assert {tuple(point[:2]) for point in found["pool"]} == {(0.0, 0.0)}
