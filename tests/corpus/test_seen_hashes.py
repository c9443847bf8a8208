"""The set of hashes: against Python's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kshot.corpus.seen_hashes import SeenHashes

HASHES = st.integers(min_value=0, max_value=2**64 - 1)


@given(st.lists(st.lists(HASHES, max_size=5) | st.integers(0, 9), max_size=30))
def test_against_a_set(steps: list[list[int] | int]) -> None:
    seen, reference = SeenHashes(), set[int]()
    for step in steps:
        if isinstance(step, int):
            assert seen.add(step) == (step not in reference)
            reference.add(step)
        else:
            new = sorted(set(step) - reference)
            seen.extend(np.array(new, dtype=np.uint64))
            reference |= set(new)
        assert len(seen) == len(reference)
    assert not any(seen.add(value) for value in reference)


def test_many_hashes_lie_in_few_arrays() -> None:
    seen = SeenHashes()
    draw = np.random.default_rng(0)
    values = draw.integers(0, 2**64, size=70_000, dtype=np.uint64).tolist()
    assert all(seen.add(value) for value in values)
    assert not any(seen.add(value) for value in values[:1_000])
    assert len(seen) == len(values)
    assert len(seen._sorted) == 1
