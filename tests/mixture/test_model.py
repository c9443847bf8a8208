"""PEFT's own calls on a mixture: save, load, switch, disable, delete, merge, generate, train."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import MixtureConfig, MixtureModel, build_mixture
from kshot.mixture.model import mixture_config, mixture_layers

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]
KINDS = {
    "top1": {"top_k": 1},
    "dense": {"top_k": 2},
    "null_and_shared": {"top_k": 2, "null_expert": True, "shared_r": 3, "shared_alpha": 1.0},
    "fixed": {"fixed_gates": [0.3, 0.7]},
}
kinds = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def logits_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def train_a_step(model: nn.Module, token_ids: torch.Tensor) -> None:
    """One large step on everything trainable, so that no part is as it was drawn."""
    model.train()
    model(input_ids=token_ids, labels=token_ids).loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data -= 0.5 * parameter.grad
            parameter.grad = None
    model.eval()


NEW_PROCESS = """
import sys, torch, kshot.mixture
from peft import PeftModel
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
base = AutoModelForCausalLM.from_pretrained(folder + "/base").eval()
model = PeftModel.from_pretrained(base, folder + "/mixture").eval()
torch.set_num_threads(1)
with torch.no_grad():
    torch.save(model(input_ids=torch.load(folder + "/tokens.pt")).logits, folder + "/logits.pt")
"""


def test_roundtrip_in_a_new_process_is_bitwise_equal(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    make_llama().save_pretrained(tmp_path / "base")
    model = build_mixture(make_llama(), two_experts, **KINDS["null_and_shared"])
    train_a_step(model, token_ids)
    model.save_pretrained(tmp_path / "mixture")
    torch.save(token_ids, tmp_path / "tokens.pt")
    subprocess.run([sys.executable, "-c", NEW_PROCESS, str(tmp_path)], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits_of(model, token_ids))


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roundtrip_is_bitwise_equal(
    options: dict[str, Any],
    dtype: torch.dtype,
    two_experts: dict[str, Path],
    make_llama: MakeModel,
    token_ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = build_mixture(make_llama(dtype), two_experts, **options)
    train_a_step(model, token_ids)
    want = logits_of(model, token_ids)
    model.save_pretrained(tmp_path / "mixture")
    for loading in ({}, {"adapter_name": "other"}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = PeftModel.from_pretrained(make_llama(dtype), tmp_path / "mixture", **loading).eval()
        assert torch.equal(logits_of(loaded, token_ids), want), loading
        trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
        parts = {name for name, _ in loaded.named_parameters() if ".mixture_" in name}
        assert trained == (parts if "is_trainable" in loading else set())


def test_state_dict_keys(two_experts: dict[str, Path], make_llama: MakeModel, tmp_path: Path) -> None:
    model = build_mixture(make_llama(), two_experts, shared_r=2)
    q0 = "base_model.model.model.layers.0.self_attn.q_proj"
    parts = ["mixture_A", "mixture_B", "mixture_router", "mixture_shared_A", "mixture_shared_B"]
    ends = {"mixture_router": ".weight"}
    ours = [key for key in model.state_dict() if key.startswith(f"{q0}.mixture")]
    assert ours == [f"{q0}.{part}.default{ends.get(part, '')}" for part in parts]
    model.save_pretrained(tmp_path / "mixture")
    saved = load_file(tmp_path / "mixture" / "adapter_model.safetensors")
    assert sorted(key for key in saved if key.startswith(q0)) == [
        f"{q0}.{part}{ends.get(part, '')}" for part in parts
    ]
    assert len(saved) == 6 * len(parts)  # q, v and down in two layers


def test_loads_a_second_mixture_and_switches(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    second = build_mixture(make_llama(), two_experts, fixed_gates=[0.5, 0.5])
    second_logits = logits_of(second, token_ids)
    second.save_pretrained(tmp_path / "second")
    model = build_mixture(make_llama(), two_experts, top_k=1)
    first_logits = logits_of(model, token_ids)
    model.load_adapter(tmp_path / "second", "second")
    assert torch.equal(logits_of(model, token_ids), first_logits)
    model.set_adapter("second")
    assert torch.equal(logits_of(model, token_ids), second_logits)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, token_ids), logits_of(make_llama(), token_ids))
    assert torch.equal(logits_of(model, token_ids), second_logits)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(logits_of(model, token_ids), first_logits)
    assert not any("second" in name for name in model.state_dict())


@kinds
def test_cached_generation_equals_uncached(
    options: dict[str, Any], two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    model = build_mixture(make_llama(), two_experts, **options)
    mask = torch.ones_like(token_ids)
    texts = [
        model.generate(
            input_ids=token_ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=use_cache
        )
        for use_cache in (True, False)
    ]
    assert texts[0].shape == (2, 17)
    assert torch.equal(*texts)


@kinds
def test_gradient_checkpointing_changes_no_gradient(
    options: dict[str, Any], two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    gradients = []
    for use_reentrant in (None, False, True):
        model = build_mixture(make_llama(), two_experts, **options).train()
        if use_reentrant is not None:
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model(input_ids=token_ids, labels=token_ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, want in gradients[0].items():
        assert want is not None, name
        torch.testing.assert_close(gradients[1][name], want)
        torch.testing.assert_close(gradients[2][name], want)


def test_only_the_mixture_is_trained(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    model = build_mixture(make_llama(), two_experts, shared_r=2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if ".mixture_" in name
    }
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_a_step(model, token_ids)
    train_a_step(model, token_ids)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".mixture_" in name}


def test_roundtrip_merge(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    model = build_mixture(make_llama(), two_experts, fixed_gates=[0.3, 0.7], shared_r=2)
    train_a_step(model, token_ids)
    want = logits_of(model, token_ids)
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model, token_ids), want, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model, token_ids), want, rtol=0, atol=1e-5)
    merged = model.merge_and_unload(safe_merge=True)
    assert not any("mixture" in name for name in merged.state_dict())
    torch.testing.assert_close(logits_of(merged, token_ids), want, rtol=0, atol=1e-5)


def test_merge_refuses_a_router_and_changes_nothing(
    two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    model = build_mixture(make_llama(), two_experts)
    want = logits_of(model, token_ids)
    with pytest.raises(AdapterError, match=r"expected fixed_gates, got the routed mixture 'default'"):
        model.merge_and_unload()
    assert torch.equal(logits_of(model, token_ids), want)


def test_fresh_mixture_through_peft_alone(make_llama: MakeModel, token_ids: torch.Tensor) -> None:
    group = {"modules": ["lm_head", "model.layers.1.mlp.up_proj"], "ranks": [2, 4], "scalings": [1.0, 2.0]}
    config = MixtureConfig(task_type="CAUSAL_LM", expert_names=["a", "b"], module_groups=[group], top_k=1)
    model = get_peft_model(make_llama(), config)
    assert isinstance(model.base_model, MixtureModel)
    assert sorted(mixture_layers(model, "default")) == sorted(group["modules"])
    assert torch.equal(logits_of(model, token_ids), logits_of(make_llama(), token_ids))
    train_a_step(model, token_ids)
    assert not torch.equal(logits_of(model, token_ids), logits_of(make_llama(), token_ids))


def test_many_modules_are_matched_by_their_whole_name(make_llama: MakeModel) -> None:
    """PEFT shortens `target_modules` from 20 names on; the mixture must not follow it to other layers."""
    names = [name for name, module in make_llama().named_modules() if isinstance(module, nn.Linear)]
    names = [name for name in names if name not in ("lm_head", "model.layers.1.self_attn.k_proj")]
    config = MixtureConfig(
        expert_names=["a"], module_groups=[{"modules": names, "ranks": [1], "scalings": [1.0]}]
    )
    model = get_peft_model(make_llama(), config)
    assert sorted(mixture_layers(model, "default")) == sorted(names)


def test_refuses_another_base(
    two_experts: dict[str, Path], make_llama: MakeModel, make_gpt2: MakeModel
) -> None:
    config = build_mixture(make_llama(), two_experts).peft_config["default"]
    base = make_gpt2()
    with pytest.raises(
        AdapterError, match=r"belongs to another base: .* got none; 6 of 6 modules are missing"
    ):
        get_peft_model(base, config)
    assert not any("mixture" in name for name in base.state_dict())


def test_mixture_config_by_name(two_experts: dict[str, Path], make_llama: MakeModel) -> None:
    model = build_mixture(make_llama(), two_experts)
    assert mixture_config(model, "default") is model.peft_config["default"]
    with pytest.raises(ConfigError, match=r"expected a mixture named 'x', got \['default'\]"):
        mixture_config(model, "x")
    with pytest.raises(ConfigError, match=r"expected a mixture named 'default', got no adapters"):
        mixture_config(make_llama(), "default")
