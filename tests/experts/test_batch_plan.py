"""Batch plans: every pair once, memory kept to, adapters in equal consecutive shares."""

from collections import Counter
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kshot.examples import Example
from kshot.experts.asked_shots import ask_shots
from kshot.experts.batch_plan import answer_bytes, default_memory_mb, likelihood_bytes, product_batches


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    num_adapters=st.integers(1, 9),
    memory=st.integers(1, 400),
)
def test_invariant_every_pair_once_within_memory_in_equal_shares(sizes, num_adapters, memory) -> None:
    batches = list(product_batches(sizes, num_adapters, memory))
    pairs = [pair for batch in batches for pair in batch]
    assert sorted(pairs) == [(m, k) for m in range(num_adapters) for k in range(len(sizes))]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(sizes[shot] for _, shot in batch) <= memory
        shares = [len(list(rows)) for _, rows in groupby(batch, key=lambda pair: pair[0])]
        assert set(Counter(shares)) == {shares[0]}
        assert [adapter for adapter, _ in batch] == sorted(adapter for adapter, _ in batch)


def test_one_shot_of_many_adapters_is_split_evenly() -> None:
    assert [len(batch) for batch in product_batches([10], 9, 60)] == [5, 4]


def test_sizes_grow_with_what_is_asked(tiny_lm) -> None:
    short, long = ask_shots(
        tiny_lm,
        [Example("say cat", "cat"), Example("say cat", "cat cat cat", rationale="since it is said")],
        "exact_match",
        listed=False,
    )
    model = tiny_lm.model
    assert likelihood_bytes(model, long, shared=True) > likelihood_bytes(model, short, shared=True)
    assert likelihood_bytes(model, long, shared=True) < likelihood_bytes(model, long, shared=False)
    tokens = short.prompt_length + 10
    assert (
        answer_bytes(model, short, 10) == tokens * 2 * 2 * 2 * 8 * 4
    )  # layers, K and V, heads, size, float32


def test_memory_is_1024_mb_or_a_quarter_of_the_weights(tiny_lm) -> None:
    assert default_memory_mb(tiny_lm.model) == 1024
    with torch.device("meta"):
        large = torch.nn.Linear(2**15, 2**15, bias=False)  # 4 GB
    assert default_memory_mb(large) == 1024
    assert default_memory_mb(large.to(torch.float64)) == pytest.approx(2048)
