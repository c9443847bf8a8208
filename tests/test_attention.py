"""Half precision trains through plain attention on a CPU, where that is faster; nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kshot.attention
from kshot.attention import training_attention
from kshot.config import TrainingConfig
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.training import fit


def attention_of(model: nn.Module) -> str:
    return str(model.config._attn_implementation)


def test_half_precision_alone_and_only_while_training(tiny_model_folder: Path) -> None:
    whole = LanguageModel.load(str(tiny_model_folder), device="cpu").model
    half = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="bfloat16").model
    with training_attention(whole, 8, 100), training_attention(half, 8, 100):
        assert (attention_of(whole), attention_of(half)) == ("sdpa", "eager")
    assert attention_of(half) == "sdpa"


def test_not_where_what_it_keeps_is_too_large(tiny_model_folder: Path) -> None:
    model = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="bfloat16").model
    with training_attention(model, 8, 100_000):
        assert attention_of(model) == "sdpa"


def test_back_after_a_failure(tiny_model_folder: Path) -> None:
    model = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="bfloat16").model
    with pytest.raises(RuntimeError, match="stopped"), training_attention(model, 8, 100):
        raise RuntimeError("stopped")
    assert attention_of(model) == "sdpa"


def test_a_mixture_learns_the_same_either_way(
    tiny_model_folder: Path, lora_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: lora_folder(name, seed) for seed, name in enumerate("ab")}
    settings = TrainingConfig(
        learning_rate=1e-3, num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=1
    )

    def losses() -> list[float]:
        lm = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="bfloat16")
        rows = [lm.template.encode("say it", "yes " * (1 + index)) for index in range(6)]
        lm.model = build_mixture(lm.model, folders, top_k=1, seed=0)
        return fit(lm, rows, settings).losses

    plain = losses()
    monkeypatch.setattr(kshot.attention, "MOST_BYTES", 0)
    assert plain != (fused := losses())
    assert torch.allclose(torch.tensor(plain), torch.tensor(fused), rtol=2e-2)
