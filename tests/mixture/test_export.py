"""An exported mixture is an ordinary LoRA: plain PEFT computes the same with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import build_mixture, export_lora, read_lora

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]


def logits_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


@pytest.mark.parametrize("options", [{}, {"shared_r": 3, "shared_alpha": 1.5}], ids=["experts", "shared"])
def test_against_peft_fixed_gates_are_exact(
    options: dict[str, Any],
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = build_mixture(make_llama(), two_experts, fixed_gates=[0.25, -0.5], **options)
    for name, parameter in model.named_parameters():
        if "shared_B" in name:
            nn.init.normal_(parameter)
    folder = export_lora(model, tmp_path / "deep" / "plain")
    plain = PeftModel.from_pretrained(make_llama(), folder)
    torch.testing.assert_close(logits_of(plain, token_ids), logits_of(model, token_ids), rtol=0, atol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (
        config["r"] == config["lora_alpha"] == 7 + options.get("shared_r", 0)
    )  # padded where ranks are less
    assert config["rank_pattern"] == {}
    assert read_lora(folder).factors  # and it can be an expert again


def test_against_peft_on_conv1d(
    make_lora: MakeLora, make_gpt2: MakeModel, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    expert = make_lora("lora", base=make_gpt2(), **settings)
    model = build_mixture(make_gpt2(), {"a": expert, "b": expert}, fixed_gates=[0.5, 0.5])
    plain = PeftModel.from_pretrained(make_gpt2(), export_lora(model, tmp_path / "plain"))
    torch.testing.assert_close(logits_of(plain, token_ids), logits_of(model, token_ids), rtol=0, atol=1e-5)


def test_routed_with_given_gates_is_the_mixture_of_these_gates(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    gates = [0.4, 0.6]
    routed = build_mixture(make_llama(), two_experts, null_expert=True)
    fixed = build_mixture(make_llama(), two_experts, fixed_gates=gates)
    plain = PeftModel.from_pretrained(make_llama(), export_lora(routed, tmp_path / "plain", gates=gates))
    torch.testing.assert_close(logits_of(plain, token_ids), logits_of(fixed, token_ids), rtol=0, atol=1e-5)


def test_exports_the_named_mixture(
    two_experts: dict[str, Path], make_llama: MakeModel, tmp_path: Path
) -> None:
    model = build_mixture(make_llama(), two_experts)
    build_mixture(model, two_experts, fixed_gates=[1.0, 0.0], adapter_name="other")
    folder = export_lora(model, tmp_path / "plain", adapter_name="other")
    assert len(read_lora(folder).factors) == 6


def test_refuses(two_experts: dict[str, Path], make_llama: MakeModel, tmp_path: Path) -> None:
    routed = build_mixture(make_llama(), two_experts)
    fixed = build_mixture(make_llama(), two_experts, fixed_gates=[1.0, 0.0])
    with pytest.raises(
        AdapterError, match="pass `batches` of text to export its mean routing"
    ):
        export_lora(routed, tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"gates must be 2 numbers, one an expert, got \[1.0\]"):
        export_lora(routed, tmp_path / "plain", gates=[1.0])
    with pytest.raises(ConfigError, match=r"gates=\[1.0, 0.0\] has no effect: the mixture's gates are fixed"):
        export_lora(fixed, tmp_path / "plain", gates=[1.0, 0.0])
    with pytest.raises(ConfigError, match=r"expected a mixture named 'x', got \['default'\]"):
        export_lora(routed, tmp_path / "plain", adapter_name="x")
    assert not (tmp_path / "plain").exists()
