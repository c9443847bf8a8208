"""Building a mixture: experts as they were, and every mistake found before the model is touched."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, LoraFactors, MixtureConfig, build_mixture, read_lora
from kshot.mixture.model import mixture_layers

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]
MakeExpert = Callable[..., LoraExpert]
Q0 = "model.layers.0.self_attn.q_proj"
DOWN0 = "model.layers.0.mlp.down_proj"


def logits_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


LORAS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 5},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.0.*q_proj": 3}},
    "all_linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("options", [{"top_k": 1}, {"fixed_gates": [1.0]}], ids=["routed", "fixed"])
@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
def test_against_peft_one_expert_is_the_lora(
    settings: dict[str, Any],
    options: dict[str, Any],
    make_lora: MakeLora,
    make_llama: MakeModel,
    token_ids: torch.Tensor,
) -> None:
    folder = make_lora("lora", **settings)
    want = logits_of(PeftModel.from_pretrained(make_llama(), folder), token_ids)
    got = logits_of(build_mixture(make_llama(), {"only": folder}, **options), token_ids)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert not torch.allclose(got, logits_of(make_llama(), token_ids), atol=1e-2)


def test_against_peft_on_conv1d(make_lora: MakeLora, make_gpt2: MakeModel, token_ids: torch.Tensor) -> None:
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    folder = make_lora("lora", base=make_gpt2(), **settings)
    want = logits_of(PeftModel.from_pretrained(make_gpt2(), folder), token_ids)
    model = build_mixture(make_gpt2(), {"only": folder}, fixed_gates=[1.0])
    torch.testing.assert_close(logits_of(model, token_ids), want, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, token_ids), want, rtol=0, atol=1e-5)


def test_experts_start_as_in_their_folders(two_experts: dict[str, Path], make_llama: MakeModel) -> None:
    model = build_mixture(make_llama(), two_experts)
    layer = mixture_layers(model, "default")[Q0]
    first, second = (read_lora(folder).factors[Q0] for folder in two_experts.values())
    assert torch.equal(layer.mixture_A["default"], torch.cat([first.A_rI, second.A_rI]))
    assert torch.equal(layer.mixture_B["default"], torch.cat([first.B_Or, second.B_Or], dim=1))
    sizes = model.peft_config["default"].sizes
    assert sizes(Q0) == ([4, 3], [2.0, 8 / math.sqrt(3)])
    assert sizes(DOWN0) == ([0, 3], [0.0, 8 / math.sqrt(3)])  # the first expert has nothing there


@pytest.mark.parametrize("expert", [0, 1])
def test_invariant_one_hot_is_that_lora(
    expert: int, two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = list(two_experts.values())[expert]
    want = logits_of(PeftModel.from_pretrained(make_llama(), folder), token_ids)
    model = build_mixture(make_llama(), two_experts, fixed_gates=[1.0 - expert, float(expert)])
    torch.testing.assert_close(logits_of(model, token_ids), want, rtol=0, atol=1e-5)


def test_invariant_zero_experts_are_the_base(make_llama: MakeModel, token_ids: torch.Tensor) -> None:
    zero = LoraExpert("zero", None, {Q0: LoraFactors(torch.zeros(2, 32), torch.zeros(32, 2), 1.0)})
    model = build_mixture(make_llama(), {"a": zero, "b": zero, "c": zero})
    assert torch.equal(logits_of(model, token_ids), logits_of(make_llama(), token_ids))


def test_invariant_same_seed_same_start(two_experts: dict[str, Path], make_llama: MakeModel) -> None:
    starts = []
    for seed, global_seed in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(global_seed)
        model = build_mixture(make_llama(), two_experts, seed=seed, shared_r=2)
        starts.append({name: p for name, p in model.named_parameters() if "mixture" in name})
    routers = [name for name in starts[0] if "router" in name]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not any(torch.equal(starts[0][name], starts[2][name]) for name in routers)


ALL_OPTIONS = {
    "top_k": 2, "router_scope": "layer", "router_granularity": "sequence", "router_temperature": 0.5,
    "router_init_std": 0.1, "router_dropout": 0.2, "null_expert": True, "shared_r": 4, "shared_alpha": 8.0,
    "load_balancing": 0.01, "z_loss": 1e-3, "seed": 3,
}  # fmt: skip


def test_options_reach_the_config(two_experts: dict[str, Path], make_llama: MakeModel) -> None:
    config = build_mixture(make_llama(), two_experts, **ALL_OPTIONS).peft_config["default"]
    assert {name: getattr(config, name) for name in ALL_OPTIONS} == ALL_OPTIONS
    assert config.expert_names == list(two_experts)
    assert config.task_type == "CAUSAL_LM"
    other = {"router_start": "directions", "fixed_gates": None}
    config = build_mixture(make_llama(), two_experts, **other).peft_config["default"]
    assert {name: getattr(config, name) for name in other} == other
    fixed = build_mixture(make_llama(), two_experts, fixed_gates=(1, 0)).peft_config["default"]
    assert fixed.fixed_gates == [1.0, 0.0]


def test_every_setting_of_the_config_can_be_built() -> None:
    fields = {field.name for field in dataclasses.fields(MixtureConfig)}
    fields -= {field.name for field in dataclasses.fields(PeftConfig)}
    found_by_build = {"expert_names", "module_groups", "expert_origins", "router_prior"}
    assert fields - found_by_build <= set(inspect.signature(build_mixture).parameters)


@pytest.mark.parametrize("options", [ALL_OPTIONS, {"router_start": "directions", "expert_scores": "given"}])
def test_roundtrip_of_every_setting(
    options: dict[str, Any],
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    if "expert_scores" in options:
        options = options | {"expert_scores": dict(zip(two_experts, (-1.0, -2.5), strict=True))}
    model = build_mixture(make_llama(), two_experts, **options).eval()
    for name, parameter in model.named_parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * ("mixture" in name)
    model.save_pretrained(tmp_path / "mixture")
    loaded = PeftModel.from_pretrained(make_llama(), tmp_path / "mixture").eval()
    first, again = model.peft_config["default"], loaded.peft_config["default"]
    assert {name: getattr(again, name) for name in vars(first) if name.startswith("router")} == {
        name: value for name, value in vars(first).items() if name.startswith("router")
    }
    mask = torch.ones_like(token_ids)
    mask[0, :2] = 0
    with torch.no_grad():
        want = model(input_ids=token_ids, attention_mask=mask).logits
        assert torch.equal(loaded(input_ids=token_ids, attention_mask=mask).logits, want)


def test_mixed_precision_experts_on_bfloat16(
    two_experts: dict[str, Path], make_llama: MakeModel, random_expert: MakeExpert, token_ids: torch.Tensor
) -> None:
    half = random_expert("half", {Q0: (32, 32, 2, 1 / 3)}, seed=4)
    factors = {m: LoraFactors(f.A_rI.half(), f.B_Or.half(), f.scaling) for m, f in half.factors.items()}
    experts = two_experts | {"half": LoraExpert("half", None, factors)}
    model = build_mixture(make_llama(torch.bfloat16), experts)
    layer = mixture_layers(model, "default")[Q0]
    assert logits_of(model, token_ids).dtype == torch.bfloat16
    assert layer.mixture_router["default"].weight.dtype == torch.float32
    assert torch.equal(layer.mixture_A["default"][:4], read_lora(two_experts["math"]).factors[Q0].A_rI)
    assert layer.mixture_spread["default"][2, -1].item() == pytest.approx(1 / 3, rel=1e-7)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"experts": {}}, ConfigError, r"experts must name at least 1 LoRA, got none"),
    ({"top_k": 3}, ConfigError, r"top_k must be in \[1, 2\], got 3"),
    ({"router_scope": "model"}, ConfigError, r"router_scope must be one of module, layer, got 'model'"),
    ({"z_loss": -1.0}, ConfigError, r"z_loss must be >= 0, got -1.0"),
    ({"expert_scores": {"math": 1.0}}, ConfigError, r"expert_scores must have one score an expert"),
    ({"adapter_name": "0"}, ConfigError, r"adapter_name must not be empty, digits, .* got '0'"),
    ({"adapter_name": ""}, ConfigError, r"adapter_name must not be empty, .* got ''"),
    ({"adapter_name": "q_proj"}, ConfigError, r"part of a module's name, got 'q_proj'"),
    ({"adapter_name": "a.b"}, ConfigError, r"got 'a.b'"),
    ({"adapter_name": "mixture"}, ConfigError, r"got 'mixture'"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_refuses_before_the_model_is_touched(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    two_experts: dict[str, Path],
    make_llama: MakeModel,
) -> None:
    base = make_llama()
    before = {name: (id(parameter), parameter.requires_grad) for name, parameter in base.named_parameters()}
    with pytest.raises(error, match=message):
        build_mixture(base, **({"experts": two_experts} | options))
    assert {n: (id(p), p.requires_grad) for n, p in base.named_parameters()} == before


def test_refuses_an_expert_of_another_base(
    two_experts: dict[str, Path], make_llama: MakeModel, random_expert: MakeExpert
) -> None:
    base = make_llama()
    before = [name for name, _ in base.named_parameters()]
    alien = random_expert("alien", {Q0: (64, 64, 2, 1.0), "transformer.h.0": (8, 8, 2, 1.0)}, seed=0)
    with pytest.raises(AdapterError, match=r"'alien' was trained on another base.*32x32 and 1 more"):
        build_mixture(base, two_experts | {"alien": alien})
    assert [name for name, _ in base.named_parameters()] == before


def test_adds_a_mixture_beside_another(
    two_experts: dict[str, Path], make_llama: MakeModel, make_lora: MakeLora, token_ids: torch.Tensor
) -> None:
    other = {"c": make_lora("third", seed=3, target_modules=["o_proj", "q_proj"])}
    model = build_mixture(make_llama(), two_experts)
    first = logits_of(model, token_ids)
    assert build_mixture(model, other, adapter_name="other") is model
    assert torch.equal(logits_of(model, token_ids), first)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".default" in name for name in trained)
    model.set_adapter("other")
    want = logits_of(build_mixture(make_llama(), other), token_ids)
    assert torch.equal(logits_of(model, token_ids), want)
    with pytest.raises(ConfigError, match=r"adapter_name must be new, got 'other'"):
        build_mixture(model, other, adapter_name="other")


def test_refuses_models_with_other_adapters(two_experts: dict[str, Path], make_llama: MakeModel) -> None:
    lora = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(
        AdapterError, match=r"expected a base model or a mixture, got a PeftModel of LoraModel"
    ):
        build_mixture(lora, two_experts)
    with pytest.raises(AdapterError, match=r"expected a base model without adapters, got some: call `unload"):
        build_mixture(lora.get_base_model(), two_experts)
