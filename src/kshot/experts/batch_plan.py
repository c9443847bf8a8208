"""Batches of (adapter, shot) pairs that fit a fixed memory.

Sizes are estimates from the model's configuration: they keep a batch from growing with the bank, the shots or
the vocabulary, and are no promise to the byte.

K shots   M adapters
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from kshot.batching import length_batches
from kshot.experts.asked_shots import AskedShot

# SmolLM2-135M in float32 on a CPU scores no more tokens a second from 4 rows of 350 tokens on (0.3 GB), and
# decodes thirteen times as many with 64 rows as with one (0.5 GB). Either has half, since the keys and values
# of a batch stay while its targets are run.
LEAST_MEMORY_MB = 1024
SHARE_OF_WEIGHTS = 1 / 4  # a larger model has a larger machine: 3.5 GB beside the 14 GB of a 7B in bfloat16

Pair = tuple[int, int]  # indices of adapter and shot


def default_memory_mb(model: nn.Module) -> int:
    """Return what a batch may take beside a base model of this size."""
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return max(LEAST_MEMORY_MB, int(weights * SHARE_OF_WEIGHTS) >> 20)


def product_batches(sizes_K: Sequence[int], num_adapters: int, memory: int) -> Iterator[list[Pair]]:
    """Group all pairs into batches, each some adapters times some shots of similar size.

    So every adapter of a batch has the same number of rows, one after another.

    Args:
        sizes_K: Bytes of a row, for each shot.
        num_adapters: M.
        memory: Bytes of a batch; one row alone may take more.

    Yields:
        Pairs in the order of the adapters.
    """
    for shots in length_batches(sizes_K, memory // num_adapters):
        size = len(shots) * max(sizes_K[shot] for shot in shots)
        num_batches = -(-num_adapters // max(1, memory // size))
        at_once = -(-num_adapters // num_batches)  # even batches, not full ones and a rest
        for start in range(0, num_adapters, at_once):
            adapters = range(start, min(start + at_once, num_adapters))
            yield [(adapter, shot) for adapter in adapters for shot in sorted(shots)]


def likelihood_bytes(model: nn.Module, shot: AskedShot, *, shared: bool) -> int:
    """Estimate what the targets of a shot take in a forward pass: activations, and logits at target tokens.

    Args:
        model: A base model.
        shot: One row, or a row for each target.
        shared: Whether the targets share a row.
    """
    config = _text_config(model)
    targets = shot.targets
    labels = sum(target.target_length for target in targets)
    tokens = shot.prompt_length + labels if shared else len(targets) * shot.longest
    width = 8 * config.hidden_size + 3 * (
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    )
    return int((tokens * width + labels * config.vocab_size) * _itemsize(model))


def answer_bytes(model: nn.Module, shot: AskedShot, max_new_tokens: int) -> int:
    """Estimate the KV cache of a shot and its answer at full length."""
    config = _text_config(model)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = 2 * (getattr(config, "num_key_value_heads", None) or heads) * head_size
    tokens = shot.prompt_length + max_new_tokens
    return int(tokens * config.num_hidden_layers * width * _itemsize(model))


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[union-attr, operator]


def _itemsize(model: nn.Module) -> int:
    return int(torch.tensor([], dtype=next(model.parameters()).dtype).element_size())
