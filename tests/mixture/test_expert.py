"""Experts made in code: what they must hold, and whether they fit a base model."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kshot.errors import AdapterError
from kshot.mixture import LoraExpert, LoraFactors, check_fits

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
Q0 = "model.layers.0.self_attn.q_proj"


def test_experts_made_in_code_are_checked(random_expert: MakeExpert) -> None:
    with pytest.raises(AdapterError, match=r"expert 'e': expected LoRA weights, got none"):
        LoraExpert("e", None, {})
    with pytest.raises(AdapterError, match=r"module m: expected a finite scaling, got nan"):
        LoraExpert("e", None, {"m": LoraFactors(torch.ones(1, 2), torch.ones(3, 1), math.nan)})
    expert = random_expert("e", {"b": (2, 3, 1, 1.0), "a": (2, 3, 1, 1.0)}, seed=0)
    assert list(expert.factors) == ["a", "b"]


def test_check_fits_names_the_first_module_and_counts_the_others(
    make_llama: MakeModel, random_expert: MakeExpert
) -> None:
    base = make_llama()
    check_fits(random_expert("e", {Q0: (32, 32, 3, 1.0)}, seed=0), base)
    wide = {f"model.layers.{i}.self_attn.q_proj": (48, 32, 3, 1.0) for i in range(2)}
    with pytest.raises(AdapterError, match=r"layers.0.*q_proj: expert 32x48, base model 32x32 and 1 more"):
        check_fits(random_expert("e", wide, seed=0), base)
    with pytest.raises(AdapterError, match=r"got h.0: expert 32x32, base model no such linear layer: choose"):
        check_fits(random_expert("e", {"h.0": (32, 32, 3, 1.0)}, seed=0), base)
