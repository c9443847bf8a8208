"""Prompts computed once: their keys and values serve the targets after them, and then the answer.

    cached   p1 p2                                    all but the last token of the prompt p1 p2 p3
    targets        | p3 a1 a2 a3 | p3 b1 b2           a `SharedRow` from there on; then forgotten
    answer         | p3 c1 c2 c3 ...                  decoded token by token

Shapes: B rows   P cached tokens of the longest prompt   S tokens after them   L target tokens of a batch
        H key heads   F their size
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kshot.batching import Batch, logits_at, pad_left, position_ids
from kshot.experts.shared_prompts import (
    PADDING,
    SharedRow,
    added_mask,
    cut,
    nll_of,
    padded_left,
    sees_block,
)
from kshot.prompts import TokenisedExample


@dataclass(frozen=True, slots=True)
class PromptCache:
    """What a model keeps of the prompts of a batch, but for their last tokens.

    Attributes:
        layers: Keys and values of each layer, (B, H, P, F).
        mask: (B, P), true at real tokens; prompts are padded on the left.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor

    def to_cache(self, model: nn.Module) -> DynamicCache:
        """Return it as a cache of its own, which a model may add to."""
        return DynamicCache(self.layers, config=model.config.get_text_config())  # type: ignore[union-attr, operator]


def keeps_all_tokens(model: nn.Module) -> bool:
    """Whether every layer of a model that `shares_prompts` keeps keys and values of all tokens."""
    cache = DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr, operator]
    return not any(cache.is_sliding) and not any(cache.is_linear)


def cache_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int, width: int) -> PromptCache:
    """Run all but the last token of each prompt.

    Args:
        model: One that `shares_prompts` and `keeps_all_tokens`.
        prompts: Token ids, two or more in each.
        pad_id: Any token.
        width: P; that of all caches that are to be joined.
    """
    rows = [TokenisedExample(tuple(prompt[:-1]), len(prompt) - 1) for prompt in prompts]
    batch = pad_left(rows, pad_id, next(model.parameters()).device, width=width)
    cache = DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr, operator]
    nothing_BT = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    with logits_at(model.get_output_embeddings(), nothing_BT):  # type: ignore[operator]
        model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=position_ids(batch.attention_mask),
            past_key_values=cache,
            use_cache=True,
        )
    layers: list[Any] = cache.layers  # of attention, as they keep all tokens
    return PromptCache(tuple((layer.keys, layer.values) for layer in layers), batch.attention_mask.bool())


def cached_nll(
    model: nn.Module, prompts: PromptCache, rows: Sequence[SharedRow], pad_id: int
) -> list[list[np.ndarray]]:
    """Return the NLL of every target token after cached prompts, in nats; as `shared_nll` does."""
    tails = [row.after_prompt() for row in rows]
    device = prompts.mask.device
    blocks_BS = padded_left([tail.blocks for tail in tails], PADDING, device)
    batch = Batch(
        input_ids=padded_left([tail.input_ids for tail in tails], pad_id, device),
        attention_mask=blocks_BS != PADDING,
        labels=padded_left([tail.labels for tail in tails], -100, device),
    )
    sees_prompt_BSP = prompts.mask[:, None, :].expand(-1, blocks_BS.shape[1], -1)
    sees_BST = torch.cat([sees_prompt_BSP, sees_block(blocks_BS)], dim=2)
    with logits_at(model.get_output_embeddings(), batch.predicts_label):  # type: ignore[operator]
        output = model(
            input_ids=batch.input_ids,
            attention_mask=added_mask(sees_BST, model),
            position_ids=padded_left([tail.positions for tail in tails], 0, device),
            past_key_values=prompts.to_cache(model),
            use_cache=True,
        )
    nll_L = nll_of(output.logits[0], batch.targets_L)
    return cut(nll_L, [row.target_lengths for row in rows])


def join_caches(parts: Sequence[PromptCache], order: Sequence[int]) -> PromptCache:
    """Put the rows of several caches into one.

    Args:
        parts: Of one width.
        order: For each row of the result its place in the parts, one after another.
    """
    mask_BP = torch.cat([part.mask for part in parts])
    places = torch.tensor(order, device=mask_BP.device)
    layers = []
    for of_layer in zip(*(part.layers for part in parts), strict=True):
        keys, values = (torch.cat(states)[places] for states in zip(*of_layer, strict=True))
        layers.append((keys, values))
    return PromptCache(tuple(layers), mask_BP[places])
