"""Which attention trains fastest: on a CPU in half precision the plain one (docs/log.md)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

MOST_BYTES = 1 << 30  # kept by plain attention for the backward pass; the fused one keeps next to nothing
KEPT_TENSORS = 4  # of shape (B, H, T, T) a layer: scores, weights, and the softmax in float32, twice as wide


@contextmanager
def training_attention(model: nn.Module, batch_size: int, num_tokens: int) -> Iterator[None]:
    """Put plain attention in place of PyTorch's fused one while a model trains, where that is faster.

    On CPUs the backward pass of the fused kernel takes a quarter of a training step in bfloat16 and next to
    nothing in float32. Gradients differ as two orders of the same sums do.

    Args:
        model: A transformers model, or what PEFT has made of one; others stay as they are.
        batch_size: Rows of a batch, B.
        num_tokens: Of its longest row, T.
    """
    found = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if found is None or not _is_faster(found, batch_size, num_tokens):
        yield
        return
    usual = found.config._attn_implementation
    found.set_attn_implementation("eager")
    try:
        yield
    finally:
        found.set_attn_implementation(usual)


def _is_faster(model: PreTrainedModel, batch_size: int, num_tokens: int) -> bool:
    config = model.config.get_text_config()
    kept = batch_size * config.num_attention_heads * num_tokens**2 * config.num_hidden_layers
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    fits = kept * KEPT_TENSORS * model.dtype.itemsize <= MOST_BYTES
    return model.device.type == "cpu" and is_half and fits and model.config._attn_implementation == "sdpa"
