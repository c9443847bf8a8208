"""Rows that join and leave a cache, against a batch that held them from the start."""

import pytest
import torch
from transformers import PreTrainedConfig

from kshot.batching import pad_left, position_ids
from kshot.errors import ConfigError
from kshot.mixture.routing import KEPT_WITH_CACHE
from kshot.prompts import TokenisedExample
from kshot.serving.cached_rows import CachedRows, check_joinable

from .conftest import Served

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13, 14), (15,)]


def read(served: Served, prompts: list[tuple[int, ...]], adapters: list[str]) -> CachedRows:
    batch = pad_left([TokenisedExample(ids, len(ids)) for ids in prompts], 0, torch.device("cpu"))
    rows = CachedRows(batch.attention_mask)
    run(served, rows, batch.input_ids, position_ids(batch.attention_mask), adapters)
    return rows


def run(served: Served, rows: CachedRows, ids: torch.Tensor, positions: torch.Tensor, adapters: list[str]):
    with torch.inference_mode():
        return served.lm.model(
            input_ids=ids, attention_mask=rows.mask_BS, position_ids=positions, past_key_values=rows.cache,
            use_cache=True, adapter_names=adapters,
        ).logits[:, -1]  # fmt: skip


def continued(served: Served, rows: CachedRows, adapters: list[str]) -> torch.Tensor:
    positions = rows.add_column()
    return run(served, rows, torch.full((len(rows), 1), 20), positions, adapters)


@pytest.mark.parametrize("name", ["tokens", "prompts", "nulls"])
def test_against_rows_that_were_there_from_the_start(served: Served, name: str) -> None:
    adapter = next(model.adapter for model in served.models if model.name == name)
    names = [adapter, "__base__", adapter, adapter]
    want = continued(served, read(served, PROMPTS, names), names)

    rows = read(served, PROMPTS[:2], names[:2])
    rows.join(read(served, PROMPTS[2:], names[2:]))
    torch.testing.assert_close(continued(served, rows, names), want, rtol=0, atol=1e-4)


def test_rows_leave_with_what_was_decided_for_them(served: Served) -> None:
    adapter = served.models[1].adapter
    rows = read(served, PROMPTS[:2], [adapter, "__base__"])
    rows.join(read(served, PROMPTS[2:], [adapter, adapter]))
    rows.select(torch.tensor([1, 3]))
    assert rows.mask_BS.tolist() == [[1, 1], [0, 1]]  # no longer than the longest row
    assert all(layer.keys.shape[2] == layer.values.shape[2] == 2 for layer in rows.cache.layers)
    decisions = getattr(rows.cache, KEPT_WITH_CACHE)
    assert all(decision.rows_B.tolist() == [1] for decision in decisions.values())
    want = continued(
        served, read(served, [PROMPTS[1], PROMPTS[3]], ["__base__", adapter]), ["__base__", adapter]
    )
    torch.testing.assert_close(continued(served, rows, ["__base__", adapter]), want, rtol=0, atol=1e-4)


def test_models_with_other_states_are_refused() -> None:
    class Recurrent(torch.nn.Module):
        config = PreTrainedConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])

    with pytest.raises(ConfigError, match="got one that keeps LinearAttentionLayer"):
        check_joinable(Recurrent())
