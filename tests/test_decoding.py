"""Greedy decoding: against transformers' own generate."""

from itertools import pairwise

import pytest
import torch
from transformers import GenerationConfig

from kshot.batching import Batch, pad_left
from kshot.decoding import greedy_decode
from kshot.mixture import build_mixture, collect_routing
from kshot.prompts import TokenisedExample

PROMPTS = ["say one", "please count two three four", "yes", "what is the sum of two and three?"]


def _batch(tiny_lm):
    ids = [tiny_lm.template.encode_prompt(prompt) for prompt in PROMPTS]
    return pad_left([TokenisedExample(tuple(row), len(row)) for row in ids], tiny_lm.pad_id, tiny_lm.device)


def test_against_transformers_generate(tiny_lm) -> None:
    batch = _batch(tiny_lm)
    free = greedy_decode(tiny_lm.model, batch, end_ids=[], max_new_tokens=12)
    ends = sorted({free[0][3], free[2][6]})  # early in some rows, late or never in others
    settings = GenerationConfig(
        max_new_tokens=12, do_sample=False, pad_token_id=tiny_lm.pad_id, eos_token_id=ends
    )
    output = tiny_lm.model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings
    )
    expected = []
    for row in output[:, batch.input_ids.shape[1] :].tolist():
        stops = [place for place, token in enumerate(row) if token in ends]
        expected.append(row[: stops[0]] if stops else row)
    assert greedy_decode(tiny_lm.model, batch, end_ids=ends, max_new_tokens=12) == expected
    assert len({len(row) for row in expected}) > 1  # rows really end at different steps


def test_rows_that_ended_leave_the_batch(tiny_lm) -> None:
    batch = _batch(tiny_lm)
    free = greedy_decode(tiny_lm.model, batch, end_ids=[], max_new_tokens=8)
    seen: list[list[int]] = []
    greedy_decode(
        tiny_lm.model,
        batch,
        end_ids=[free[1][2]],
        max_new_tokens=8,
        on_rows=lambda rows: seen.append(list(rows)),
    )
    assert seen[0] == [0, 1, 2, 3]
    assert 1 not in seen[3]
    assert all(set(later) <= set(earlier) for earlier, later in pairwise(seen))
    assert torch.is_grad_enabled()


def test_tokens_chosen_row_by_row(tiny_lm) -> None:
    batch = _batch(tiny_lm)
    steps = [0] * len(PROMPTS)

    def choose(logits_BV: torch.Tensor, rows: list[int]) -> torch.Tensor:
        assert logits_BV.shape == (len(rows), len(tiny_lm.tokenizer))
        for row in rows:
            steps[row] += 1
        return torch.tensor([7 if steps[row] > row else 10 + row for row in rows])

    answers = greedy_decode(tiny_lm.model, batch, end_ids=[7], max_new_tokens=8, choose=choose)
    assert answers == [[], [11], [12, 12], [13, 13, 13]]


@pytest.mark.parametrize("router_scope", ["module", "layer"])
def test_a_router_that_decides_by_the_prompt_follows_its_rows(tiny_lm, lora_folder, router_scope) -> None:
    """Rows that leave at different times take their decisions along: as if each were alone."""
    experts = {name: lora_folder(name, seed, std=0.5) for seed, name in enumerate("abc", start=1)}
    options = {
        "router_granularity": "sequence",
        "router_scope": router_scope,
        "router_init_std": 2.0,
        "top_k": 3,
    }
    model = build_mixture(tiny_lm.model, experts, **options).eval()
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 300, (length,), generator=draw).tolist() for length in (3, 7, 2, 5)]
    rows_of_tokens = [TokenisedExample(tuple(row), len(row)) for row in prompts]
    batch = pad_left(rows_of_tokens, tiny_lm.pad_id, tiny_lm.device)

    def decode(rows: list[int], ends: list[int]) -> list[list[int]]:
        some = Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows])
        with torch.no_grad():
            return greedy_decode(model, some, end_ids=ends, max_new_tokens=12)

    free = [decode([row], [])[0] for row in range(4)]
    ends = sorted({free[0][3], free[2][6]})
    alone = [decode([row], ends)[0] for row in range(4)]
    assert decode([0, 1, 2, 3], ends) == alone
    assert len({len(answer) for answer in alone}) > 2  # rows really leave at different steps
    with collect_routing(model, keep_tokens=True) as routing:
        decode([0, 1, 2, 3], [])
    prefill = [module.tokens[0].amax(dim=1) for module in routing.modules.values()]
    assert max((gates_BE.amax(dim=0) - gates_BE.amin(dim=0)).max() for gates_BE in prefill) > 0.1
