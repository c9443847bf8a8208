"""Greedy decoding of a batch with a KV cache; a row that has ended leaves the batch.

`transformers.generate` keeps ended rows until the last one ends and does the work of its samplers at every
step; `benchmarks/decoding.py` compares the two on SmolLM2-135M.

Shapes: B rows still going, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kshot.batching import Batch, logits_at, position_ids

OnRows = Callable[[list[int]], None]
Choose = Callable[[Tensor, list[int]], Tensor]
"""(B, V) logits and the rows that they belong to -> (B,) token ids."""


def greedy_decode(
    model: nn.Module,
    batch: Batch,
    *,
    end_ids: Collection[int],
    max_new_tokens: int,
    on_rows: OnRows | None = None,
    choose: Choose | None = None,
    cache: DynamicCache | None = None,
) -> list[list[int]]:
    """Append the likeliest token to each row until an end token or `max_new_tokens`.

    Args:
        model: A causal language model that takes a `DynamicCache`.
        batch: Left-padded prompts.
        end_ids: Tokens that end a row; they are not returned.
        max_new_tokens: Longest answer, in tokens.
        on_rows: Called before each pass with the rows, by their index in `batch`, that it holds.
        choose: Takes the next tokens in place of the likeliest ones; rows are named as for `on_rows`.
        cache: Of the first columns of the batch, where they were computed before; it is added to.

    Returns:
        New token ids of each row.
    """
    select_rows = getattr(model, "select_rows", None)  # of a model that remembers something of each prompt
    ends = torch.tensor(sorted(end_ids), device=batch.input_ids.device)
    rows = list(range(len(batch.input_ids)))
    answers: list[list[int]] = [[] for _ in rows]
    cache = cache or DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr, operator]
    held, mask_BT = cache.get_seq_length(), batch.attention_mask
    tokens_BT, positions_BT = batch.input_ids[:, held:], position_ids(mask_BT)[:, held:]
    for _ in range(max_new_tokens):
        if on_rows:
            on_rows(rows)
        logits_BV = _last_logits(model, tokens_BT, mask_BT, positions_BT, cache)
        next_B = choose(logits_BV, rows) if choose else logits_BV.argmax(dim=-1)
        going_B = ~torch.isin(next_B, ends)
        for row, token, going in zip(rows, next_B.tolist(), going_B.tolist(), strict=True):
            if going:
                answers[row].append(token)
        if not going_B.all():
            kept = going_B.nonzero().squeeze(1)
            rows = [rows[index] for index in kept.tolist()]
            if not rows:
                break
            cache.batch_select_indices(kept)
            if select_rows:
                select_rows(kept)
            next_B, mask_BT, positions_BT = next_B[kept], mask_BT[kept], positions_BT[kept]
        tokens_BT = next_B.unsqueeze(1)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        positions_BT = positions_BT[:, -1:] + 1
    return answers


def _last_logits(
    model: nn.Module, tokens_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: DynamicCache
) -> Tensor:
    """(B, V) logits of the last position alone."""
    last_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    last_BT[:, -1] = True
    with logits_at(model.get_output_embeddings(), last_BT):  # type: ignore[operator]
        output = model(
            input_ids=tokens_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
        )
    logits_BV: Tensor = output.logits[0]
    return logits_BV
