"""Greedy decoding: against transformers' own generate."""

from itertools import pairwise

import torch
from transformers import GenerationConfig

from kshot.batching import pad_left
from kshot.decoding import greedy_decode
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
