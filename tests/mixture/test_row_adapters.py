"""Which rows of a module's input belong to which mixture."""

import pytest
import torch

from kshot.errors import ConfigError
from kshot.mixture.row_adapters import RowAdapters


def rows_of(names: list[str], *shape: int, may_repeat: bool = False) -> dict[str, list[int]]:
    rows = RowAdapters(names, may_repeat=may_repeat)
    first, again = (rows.rows_in(torch.zeros(shape)) for _ in range(2))
    assert {name: own.tolist() for name, own in first.items()} == {
        n: own.tolist() for n, own in again.items()
    }
    return {name: own.tolist() for name, own in first.items()}


def test_rows_by_name() -> None:
    assert rows_of(["b", "__base__", "a", "b"], 4, 7, 5) == {"a": [2], "b": [0, 3]}
    assert rows_of(["__base__"], 1, 7, 5) == {}
    assert rows_of(["a", "b"], 2, 5) == {"a": [0], "b": [1]}


def test_generation_repeats_rows_side_by_side() -> None:
    assert rows_of(["a", "b"], 6, 1, 5, may_repeat=True) == {"a": [0, 1, 2], "b": [3, 4, 5]}


@pytest.mark.parametrize(
    ("names", "shape", "may_repeat"),
    [
        (["a", "b"], (4, 7, 5), False),  # nothing repeats the rows of a forward
        (["a", "b"], (3, 7, 5), True),
        (["a", "b"], (1, 7, 5), True),
        (["a", "b"], (14, 5), True),  # tokens of all rows in one line
        ([], (2, 7, 5), False),
    ],
)
def test_other_rows_than_the_call(names: list[str], shape: tuple[int, ...], may_repeat: bool) -> None:
    with pytest.raises(ConfigError, match=rf"one of adapter_names a row, {shape[0]}, got {len(names)}"):
        RowAdapters(names, may_repeat=may_repeat).rows_in(torch.zeros(shape))
