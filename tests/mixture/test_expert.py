"""Reading PEFT LoRA folders: factors equal to PEFT's own, and a clear refusal of everything else."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from kshot.errors import AdapterError
from kshot.mixture import LoraExpert, LoraFactors, check_fits, read_lora

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]
MakeExpert = Callable[..., LoraExpert]
Q0 = "model.layers.0.self_attn.q_proj"
KEY = f"base_model.model.{Q0}.lora_A.weight"
KEY_B = f"base_model.model.{Q0}.lora_B.weight"


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


LORAS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {r".*layers\.0.*": 3},
    },
    "rslora_patterns": {
        "use_rslora": True,
        "rank_pattern": {"^model.layers.0.*q_proj": 3},
        "alpha_pattern": {"q_proj": 5},
    },
    "all_linear": {"target_modules": "all-linear"},
    "lm_head": {"target_modules": ["lm_head", "gate_proj"]},
    "some_layers": {"layers_to_transform": [1]},
}  # fmt: skip


@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_against_peft_weight_changes(
    settings: dict[str, Any], make_lora: MakeLora, make_llama: MakeModel
) -> None:
    folder = make_lora("lora", **settings)
    change_weights(folder, lambda tensors: tensors.pop("base_model.model.lm_head.base_layer.weight", None))
    expert = read_lora(folder)
    peft_model = PeftModel.from_pretrained(make_llama(), folder)
    layers = {
        name: layer
        for name, layer in peft_model.get_base_model().named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert list(expert.factors) == sorted(layers)
    for module, factors in expert.factors.items():
        delta = factors.scaling * factors.B_Or @ factors.A_rI
        torch.testing.assert_close(delta, layers[module].get_delta_weight("default"))
        assert factors.r == factors.A_rI.shape[0]


def test_conv1d_factors_are_inputs_and_outputs(make_lora: MakeLora, make_gpt2: MakeModel) -> None:
    base = make_gpt2()
    folder = make_lora("lora", base=make_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    factors = read_lora(folder).factors["transformer.h.0.attn.c_attn"]
    assert (factors.A_rI.shape, factors.B_Or.shape) == ((4, 32), (96, 4))
    check_fits(read_lora(folder), base)


def test_name_base_and_stored_dtype(make_lora: MakeLora) -> None:
    folder = make_lora("my-lora")
    change_config(folder, base_model_name_or_path="some/base")
    change_weights(folder, lambda tensors: tensors.update({k: t.bfloat16() for k, t in tensors.items()}))
    expert = read_lora(folder)
    assert (expert.name, expert.base_model) == ("my-lora", "some/base")
    assert expert.factors[Q0].A_rI.dtype == torch.bfloat16
    change_config(folder, base_model_name_or_path=7)
    assert read_lora(str(folder), "other").base_model is None


def test_old_keys_with_the_adapter_name(make_lora: MakeLora) -> None:
    folder = make_lora("lora")
    want = read_lora(folder).factors[Q0].A_rI
    change_weights(folder, lambda t: t.update({KEY.replace(".weight", ".default.weight"): t.pop(KEY)}))
    assert torch.equal(read_lora(folder).factors[Q0].A_rI, want)


def test_missing_r_and_alpha_are_those_of_peft(make_lora: MakeLora) -> None:
    folder = make_lora("lora", r=4)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["r"], config["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert read_lora(folder).factors[Q0].scaling == 8 / 4


BAD_CONFIGS = {
    "ia3": ({"peft_type": "IA3"}, r"expected peft_type LORA, got 'IA3'"),
    "dora": ({"use_dora": True}, r"expected a plain LoRA, got use_dora=True"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, r"got init_lora_weights='pissa_niter_4'"),
    "rank": ({"r": 5}, r"expected r=5 in .*q_proj as adapter_config.json says, got weights of rank 4"),
    "r": ({"r": "four"}, r"expected r as a number, got 'four'"),
    "alpha": ({"lora_alpha": None}, r"expected lora_alpha as a number, got None"),
    "alpha_inf": ({"lora_alpha": math.inf}, r"expected lora_alpha as a number, got inf"),
    "pattern": ({"rank_pattern": [3]}, r"expected rank_pattern as an object, got \[3\]"),
    "regex": ({"alpha_pattern": {"(": 3}}, r"expected regular expressions in alpha_pattern"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_refuses_configs(settings: dict[str, Any], message: str, make_lora: MakeLora) -> None:
    folder = make_lora("lora")
    change_config(folder, **settings)
    with pytest.raises(AdapterError, match=message):
        read_lora(folder)


def _fill(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[KEY].fill_(value)


BAD_WEIGHTS = {
    "nan": (_fill(math.nan), r"q_proj: expected finite weights, got NaN or inf in lora_A"),
    "inf": (_fill(math.inf), r"q_proj: expected finite weights, got NaN or inf in lora_A"),
    "lone_B": (lambda t: t.pop(KEY), r"expected both factors of .*, got lora_B without lora_A"),
    "lone_A": (lambda t: t.pop(KEY_B), r"got lora_A without lora_B"),
    "shape": (lambda t: t.update({KEY_B: t[KEY_B][:, :3]}), r"expected A \(r, inputs\) and B"),
    "integer": (lambda t: t.update({KEY: t[KEY].to(torch.int32)}), r"expected lora_A in .*, got torch.int32"),
    "conv": (lambda t: t.update({KEY: t[KEY][..., None]}), r"of a linear layer, got A \(4, 32, 1\)"),
    "bias": (lambda t: t.update({KEY.replace("lora_A.weight", "bias"): t[KEY]}), r"got a bias in"),
    "dora": (lambda t: t.update({"m.lora_magnitude_vector": t[KEY]}), r"got a DoRA magnitude in"),
    "embedding": (lambda t: t.update({"m.lora_embedding_A": t[KEY]}), r"got a trained embedding in"),
    "saved": (lambda t: t.update({"base_model.model.score.weight": t[KEY]}), r"got a whole weight \("),
    "twice": (lambda t: t.update({KEY.replace(".weight", ".x.weight"): t[KEY]}), r"got a second or unknown"),
    "none": (lambda t: t.clear(), r"expected LoRA weights, got none"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_refuses_weights(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, make_lora: MakeLora
) -> None:
    folder = make_lora("lora")
    change_weights(folder, change)
    with pytest.raises(AdapterError, match=message):
        read_lora(folder)


def test_refuses_pickles_and_holes(make_lora: MakeLora, tmp_path: Path) -> None:
    folder = make_lora("lora")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    with pytest.raises(AdapterError, match=r"expected whole safetensors, got SafetensorError"):
        read_lora(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(
        AdapterError, match=r"got only adapter_model.bin, which is never unpickled: convert it"
    ):
        read_lora(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"expected adapter_model.safetensors, got none"):
        read_lora(folder)
    (folder / "adapter_config.json").write_bytes(b'{"peft_type": \xff')
    with pytest.raises(AdapterError, match=r"adapter_config.json: expected JSON, got"):
        read_lora(folder)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(AdapterError, match=r"expected a JSON object, got a list"):
        read_lora(folder)
    with pytest.raises(
        AdapterError, match=r"expected a PEFT adapter folder with adapter_config.json, got none"
    ):
        read_lora(tmp_path / "nowhere")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
SETTINGS = [
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "peft_type",
    "init_lora_weights",
]


@given(config=st.dictionaries(st.sampled_from(SETTINGS), JSON), junk=st.binary(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bad_folders_raise_nothing_but_adapter_errors(
    config: dict[str, Any], junk: bytes, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1} | config))
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.ones(3, 1)}, weights)
    for damage in (b"", junk):
        weights.write_bytes(damage + weights.read_bytes())
        with suppress(AdapterError):  # the one error allowed
            assert read_lora(tmp_path).factors


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
