"""An exported mixture is an ordinary LoRA: plain PEFT computes the same with it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import (
    build_mixture,
    constant_gates,
    constant_gates_loss,
    export_lora,
    mean_gates,
    read_lora,
)
from kshot.mixture.model import mixture_layers

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def batches(token_ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The first row is padded on the left: 4 + 8 tokens to predict."""
    mask = torch.ones_like(token_ids)
    mask[0, :4] = 0
    return [{"input_ids": token_ids, "attention_mask": mask}]


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


@pytest.mark.parametrize("options", [{}, {"router_scope": "layer"}, {"null_expert": True, "shared_r": 2}])
def test_by_mean_routing_is_the_mixture_under_constant_gates(
    options: dict[str, Any],
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    batches: list[dict[str, torch.Tensor]],
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = build_mixture(make_llama(), two_experts, top_k=1, router_init_std=1.0, **options)
    for name, parameter in model.named_parameters():
        if "shared_B" in name:
            nn.init.normal_(parameter)
    gates = mean_gates(model, batches)
    assert len({tuple(one) for one in gates.values()}) > 1
    folder = export_lora(model, tmp_path / "plain", batches=batches)
    plain = PeftModel.from_pretrained(make_llama(), folder)
    with constant_gates(model, gates):
        want = logits_of(model, token_ids)
    torch.testing.assert_close(logits_of(plain, token_ids), want, rtol=0, atol=1e-5)
    report = json.loads((folder / "export.json").read_text())
    assert report["exact"] is False
    assert report["gates"] == gates
    assert report["loss"] == asdict(constant_gates_loss(model, gates, batches))
    assert report["loss"]["num_tokens"] == 12
    assert report["loss"]["kl"] > 0
    assert str(tmp_path) not in (folder / "export.json").read_text()


def test_a_constant_router_loses_nothing(
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    batches: list[dict[str, torch.Tensor]],
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = build_mixture(make_llama(), two_experts, expert_scores={"math": 0.0, "code/b.2": 1.0}).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("mixture_router.default.weight"):
            nn.init.zeros_(parameter)
    folder = export_lora(model, tmp_path / "plain", batches=batches)
    plain = PeftModel.from_pretrained(make_llama(), folder)
    torch.testing.assert_close(logits_of(plain, token_ids), logits_of(model, token_ids), rtol=0, atol=1e-5)
    report = json.loads((folder / "export.json").read_text())
    want = [1 / (1 + torch.e), torch.e / (1 + torch.e)]
    assert all(gates == pytest.approx(want, abs=1e-6) for gates in report["gates"].values())
    assert report["loss"]["kl"] == pytest.approx(0, abs=1e-6)
    assert report["loss"]["same_top"] == 1


def test_gates_by_module(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    model = build_mixture(make_llama(), two_experts)
    gates = {module: [0.1 * i, 1 - 0.2 * i] for i, module in enumerate(mixture_layers(model, "default"))}
    folder = export_lora(model, tmp_path / "plain", gates=gates)
    with constant_gates(model, gates):
        want = logits_of(model, token_ids)
    plain = PeftModel.from_pretrained(make_llama(), folder)
    torch.testing.assert_close(logits_of(plain, token_ids), want, rtol=0, atol=1e-5)
    report = json.loads((folder / "export.json").read_text())
    assert report == {"exact": False, "gates": gates, "loss": None}


def test_given_gates_are_measured_on_batches(
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    batches: list[dict[str, torch.Tensor]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build_mixture(make_llama(), two_experts)
    with caplog.at_level("INFO", "kshot.mixture.export"):
        folder = export_lora(model, tmp_path / "plain", gates=[1, 0], batches=batches)
    report = json.loads((folder / "export.json").read_text())
    assert set(map(tuple, report["gates"].values())) == {(1.0, 0.0)}
    gates = {module: [1.0, 0.0] for module in mixture_layers(model, "default")}
    want = constant_gates_loss(model, gates, batches)
    assert report["loss"] == asdict(want)
    assert caplog.messages == [f"exported default with constant gates: {want}"]


def test_report_of_fixed_gates_says_exact(
    two_experts: dict[str, Path], make_llama: MakeModel, tmp_path: Path
) -> None:
    model = build_mixture(make_llama(), two_experts, fixed_gates=[0.25, 0.75])
    report = json.loads((export_lora(model, tmp_path / "plain") / "export.json").read_text())
    assert report == {"exact": True, "gates": None, "loss": None}


@pytest.mark.parametrize("options", [{"top_k": 1}, {"router_granularity": "sequence", "top_k": 1}])
def test_leaves_the_model_as_it_was(
    options: dict[str, Any],
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    batches: list[dict[str, torch.Tensor]],
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = build_mixture(make_llama(), two_experts, **options)
    want = logits_of(model, token_ids)
    model.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    export_lora(model, tmp_path / "plain", batches=batches)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks
    for layer in mixture_layers(model, "default").values():
        assert not layer.recorders
        assert "default" not in layer.mixture_gates
    assert torch.equal(logits_of(model.eval(), token_ids), want)


REFUSED = {
    "too few": ({"gates": [1.0]}, r"gates must be 2 finite numbers, one an expert, got \[1.0\]"),
    "not finite": ({"gates": [1.0, float("nan")]}, r"gates must be 2 finite numbers, .* got \[1.0, nan\]"),
    "one module": (
        {"gates": {Q0: [1.0, 0.0]}},
        r"must name the mixture's 6 modules, got 1, with model\.layers",
    ),
    "no batches": ({"batches": []}, r"expected batches to take the mean routing over, got none"),
    "no such mixture": ({"adapter_name": "x"}, r"expected a mixture named 'x', got \['default', 'other'\]"),
    "not active": (
        {"adapter_name": "other", "batches": [{"input_ids": torch.ones(1, 3, dtype=torch.int64)}]},
        r"expected the mixture 'other' to be active",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(
    options: dict[str, Any],
    message: str,
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    tmp_path: Path,
) -> None:
    model = build_mixture(make_llama(), two_experts)
    build_mixture(model, two_experts, adapter_name="other")
    with pytest.raises(ConfigError, match=message):
        export_lora(model, tmp_path / "plain", **options)
    assert not (tmp_path / "plain").exists()


def test_refuses_a_router_without_gates_and_gates_without_a_router(
    two_experts: dict[str, Path], make_llama: MakeModel, tmp_path: Path
) -> None:
    routed = build_mixture(make_llama(), two_experts)
    with pytest.raises(AdapterError, match="pass `batches` of text to export its mean routing"):
        export_lora(routed, tmp_path / "plain")
    fixed = build_mixture(make_llama(), two_experts, fixed_gates=[1.0, 0.0])
    for options in ({"gates": [1.0, 0.0]}, {"batches": [{"input_ids": torch.ones(1, 3)}]}):
        with pytest.raises(ConfigError, match=r"gates and batches have no effect: .* gates are fixed"):
            export_lora(fixed, tmp_path / "plain", **options)
    assert not (tmp_path / "plain").exists()
