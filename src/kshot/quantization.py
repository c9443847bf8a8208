"""Base models with 8- or 4-bit weights, through bitsandbytes; whatever is trained stays in floats."""

import logging
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from kshot.errors import ConfigError, MissingExtraError

Quantization = Literal["none", "8bit", "4bit"]


def quantization_settings(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return what `from_pretrained` needs to quantise a model as it loads it; nothing for `none`.

    8 bits are LLM.int8() (arXiv 2208.07339), whose outlying inputs stay in half precision; which they are
    depends on the whole batch, so that a row's numbers change a little with the rows beside it. 4 bits are
    NF4 with quantised constants, as in QLoRA (arXiv 2305.14314).

    Args:
        quantization: `none`, `8bit` or `4bit`.
        dtype: What 4-bit weights are computed in.

    Raises:
        ConfigError: `quantization` is unknown.
        MissingExtraError: bitsandbytes is not installed.
    """
    if quantization not in get_args(Quantization):
        raise ConfigError(f"expected quantization {', '.join(get_args(Quantization))}, got {quantization!r}")
    if quantization == "none":
        return {}
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"quantization: {quantization} needs bitsandbytes: pip install 'kshot[quantised]'"
        )
    # It warns at every product of 8-bit weights with inputs in float32 or bfloat16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config}


def keep_trainable(model: nn.Module) -> None:
    """Let bitsandbytes not repack 4-bit weights for inference on a CPU.

    It does so in the first pass without gradients, and there is no backward pass through what comes out: a
    model that was scored could not be trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
