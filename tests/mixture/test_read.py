"""Loading experts: factors equal to PEFT's own, and a clear refusal of everything else."""

import json
import math
import shutil
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

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, build_mixture, check_fits, load_expert, read_lora

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


def logits_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def check_against_peft(folder: Path, make: MakeModel, token_ids: torch.Tensor) -> None:
    """A mixture of this expert alone computes what PEFT computes with the folder."""
    base = make()
    expert = load_expert(folder, "only", base)
    want = logits_of(PeftModel.from_pretrained(make(), folder), token_ids)
    got = logits_of(build_mixture(base, {"only": expert}, fixed_gates=[1.0]), token_ids)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert not torch.allclose(got, logits_of(make(), token_ids), atol=1e-2)


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
LORAS = {
    "attention": {"target_modules": ATTENTION},
    "mlp": {"target_modules": MLP},
    "all_linear": {"target_modules": "all-linear"},
    "lm_head": {"target_modules": ["lm_head", "gate_proj"]},
    "regex": {"target_modules": r".*layers\.1.*(q|up)_proj"},
    "some_layers": {"layers_to_transform": [1]},
    "rslora": {"use_rslora": True, "r": 5},
    "rank_pattern": {"rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {r".*layers\.0.*": 3}},
    "patterns": {
        "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {r".*layers\.0.*": 3},
    },
    "rslora_patterns": {
        "use_rslora": True,
        "rank_pattern": {"^model.layers.0.*q_proj": 3},
        "alpha_pattern": {"q_proj": 5},
    },
    "gaussian": {"init_lora_weights": "gaussian"},
}  # fmt: skip


@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_against_peft_forward(
    settings: dict[str, Any], make_lora: MakeLora, make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = make_lora("lora", **settings)
    change_weights(folder, lambda tensors: tensors.pop("base_model.model.lm_head.base_layer.weight", None))
    check_against_peft(folder, make_llama, token_ids)


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


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_against_peft_on_conv1d(
    targets: list[str], make_lora: MakeLora, make_gpt2: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = make_lora("lora", base=make_gpt2(), target_modules=targets, fan_in_fan_out=True)
    check_against_peft(folder, make_gpt2, token_ids)


def test_conv1d_factors_are_inputs_and_outputs(make_lora: MakeLora, make_gpt2: MakeModel) -> None:
    base = make_gpt2()
    folder = make_lora("lora", base=make_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    factors = read_lora(folder).factors["transformer.h.0.attn.c_attn"]
    assert (factors.A_rI.shape, factors.B_Or.shape) == ((4, 32), (96, 4))
    check_fits(read_lora(folder), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes(
    dtype: torch.dtype, make_lora: MakeLora, make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = make_lora("lora")
    change_weights(folder, lambda tensors: tensors.update({k: t.to(dtype) for k, t in tensors.items()}))
    assert load_expert(folder, "e").factors[Q0].A_rI.dtype == dtype
    check_against_peft(folder, make_llama, token_ids)


@pytest.mark.parametrize("base_name", ["some/other-base", "/gone/models/llama", None, 7, ""])
def test_the_base_named_does_not_decide(
    base_name: Any, make_lora: MakeLora, make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = make_lora("my-lora")
    change_config(folder, base_model_name_or_path=base_name)
    assert read_lora(folder).base_model == (base_name if isinstance(base_name, str) else None)
    expert = load_expert(folder, "only", make_llama())
    want = logits_of(PeftModel.from_pretrained(make_llama(), folder), token_ids)
    got = logits_of(build_mixture(make_llama(), {"only": expert}, fixed_gates=[1.0]), token_ids)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_old_keys_with_the_adapter_name(make_lora: MakeLora) -> None:
    folder = make_lora("lora")
    want = read_lora(folder).factors

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    change_weights(folder, rename)
    got = read_lora(folder).factors
    assert list(got) == list(want)
    for module, factors in got.items():
        assert torch.equal(factors.A_rI, want[module].A_rI)
        assert torch.equal(factors.B_Or, want[module].B_Or)


def test_missing_r_and_alpha_are_those_of_peft(make_lora: MakeLora) -> None:
    folder = make_lora("lora", r=4)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["r"], config["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert read_lora(folder).factors[Q0].scaling == 8 / 4


def test_origin_of_a_folder(make_lora: MakeLora) -> None:
    folder = make_lora("my-lora")
    change_config(folder, base_model_name_or_path="some/base")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A card\n")
    assert (read_lora(folder).name, read_lora(str(folder), "other").name) == ("my-lora", "other")
    origin = load_expert(str(folder), "math").origin
    assert origin == {
        "name": "math", "source": "my-lora", "base_model": "some/base", "licence": "apache-2.0",
        "converted_from": None, "conversion_error": None,
    }  # fmt: skip
    assert json.loads(json.dumps(origin)) == origin


@pytest.mark.parametrize("path", ["/home/me/models/llama", r"C:\models\llama"])
def test_origin_holds_no_path_of_a_machine(path: str, make_lora: MakeLora, tmp_path: Path) -> None:
    folder = make_lora("lora")
    change_config(folder, base_model_name_or_path=path)
    origin = load_expert(folder, "e").origin
    assert origin is not None
    assert origin["base_model"] == "llama"
    assert str(tmp_path) not in json.dumps(origin)


def test_takes_experts_already_read(random_expert: MakeExpert, make_lora: MakeLora) -> None:
    made = random_expert("made", {Q0: (32, 32, 3, 1.0)}, seed=0)
    expert = load_expert(made, "math")
    assert expert.factors[Q0].A_rI is made.factors[Q0].A_rI
    assert expert.name == "math"
    assert expert.origin is not None
    assert (expert.origin["name"], expert.origin["source"]) == ("math", "memory")
    again = load_expert(load_expert(make_lora("lora"), "first"), "second")
    assert again.origin is not None
    assert (again.origin["name"], again.origin["source"]) == ("second", "lora")


@pytest.mark.parametrize("name", ["", " ", "3", "007"])
def test_refuses_names(name: str, make_lora: MakeLora) -> None:
    with pytest.raises(ConfigError, match=rf"must not be empty or digits alone, got {name!r}: rename it"):
        load_expert(make_lora("lora"), name)


def test_refuses_another_architecture(
    make_lora: MakeLora, make_gpt2: MakeModel, random_expert: MakeExpert
) -> None:
    with pytest.raises(
        AdapterError, match=r"'e' was trained on another base.*q_proj: expert 32x32, base mod"
    ):
        load_expert(make_lora("lora"), "e", make_gpt2())
    with pytest.raises(AdapterError, match=r"'e' was trained on another base"):
        load_expert(random_expert("made", {"h": (8, 8, 1, 1.0)}, seed=0), "e", make_gpt2())


BAD_CONFIGS = {
    "prompt": ({"peft_type": "PROMPT_TUNING"}, r"got 'PROMPT_TUNING', which adds tokens or states"),
    "norms": ({"peft_type": "LN_TUNING"}, r"got 'LN_TUNING', which trains norms: leave it out"),
    "xlora": ({"peft_type": "XLORA"}, r"got 'XLORA', which has a router of its own"),
    "mixture": ({"peft_type": "KSHOT_MIXTURE"}, r"which is a mixture itself: give its experts"),
    "unknown": ({"peft_type": "NEW"}, r"got 'NEW', which is not known to be a change of weights"),
    "no_kind": ({"peft_type": None}, r"expected peft_type LORA, or one that can be converted .*, got None"),
    "strange_kind": ({"peft_type": ["LORA"]}, r"got \['LORA'\], which is not known"),
    "ia3": ({"peft_type": "IA3"}, r"expected a plain LoRA, got IA3, .* pass convert_rank= to load_expert"),
    "dora": ({"use_dora": True}, r"expected a plain LoRA, got DORA, .* pass convert_rank="),
    "parameters": ({"target_parameters": ["mlp.experts"]}, r"got LORA on parameters, .* pass convert_rank="),
    "alora": ({"alora_invocation_tokens": [1]}, r"got alora_invocation_tokens=\[1\], which is switched on"),
    "arrow": ({"arrow_config": {"top_k": 1}}, r"got arrow_config=.*, which has a router of its own"),
    "tokens": ({"trainable_token_indices": [3]}, r"got trainable_token_indices=\[3\], which also trains emb"),
    "layers": ({"layer_replication": [[0, 2]]}, r"got layer_replication=.* which also changes the base"),
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
    with pytest.raises(AdapterError, match=message):
        load_expert(folder, "e")


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
    "lora_bias": (lambda t: t.update({KEY_B.replace(".weight", ".bias"): t[KEY]}), r"got a bias in"),
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


@pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`",
    "ignore:`lora_bias=True` was passed",
    "ignore:Adapter .* invalid shape",
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, r"got a whole weight \(modules_to_save.* in .*lm_head.weight"),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            r"got a trained embedding in .*embed_tokens.lora_emb",
        ),
        ({"lora_bias": True}, r"got a bias in .*lora_B.bias"),
        ({"trainable_token_indices": [3, 4]}, r"got trainable_token_indices=\[3, 4\]"),
    ],
)
def test_refuses_what_peft_writes_beside_factors(
    settings: dict[str, Any], message: str, make_lora: MakeLora, make_llama: MakeModel
) -> None:
    folder = make_lora("lora", **settings)
    change_weights(folder, lambda t: [t[key].add_(0.01) for key in t if key.endswith("lm_head.weight")])
    with pytest.raises(AdapterError, match=message):
        load_expert(folder, "e", make_llama())
    with pytest.raises(AdapterError):
        load_expert(folder, "e")


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_copies_of_the_base_that_peft_saves_unasked(
    base_dtype: torch.dtype, make_lora: MakeLora, make_llama: MakeModel
) -> None:
    copy = "base_model.model.lm_head.base_layer.weight"
    folder = make_lora("lora", target_modules=["lm_head", "q_proj"])
    change_weights(folder, lambda tensors: tensors.update({copy: tensors[copy].to(base_dtype)}))
    base = make_llama().to(base_dtype)
    expert = load_expert(folder, "e", base)
    assert "lm_head" in expert.factors
    mixed = build_mixture(base, {"e": expert}).get_base_model()  # the copy's name is another now
    assert list(load_expert(folder, "e", mixed).factors) == list(expert.factors)
    with pytest.raises(AdapterError, match=r"got a whole weight .* in .*lm_head.base_layer.weight"):
        load_expert(folder, "e")
    change_weights(folder, lambda tensors: tensors[copy][0].add_(0.1))
    with pytest.raises(AdapterError, match=r"got a whole weight .* in .*lm_head.base_layer.weight"):
        load_expert(folder, "e", mixed)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_refuses_trained_biases(bias: str, make_lora: MakeLora, make_gpt2: MakeModel) -> None:
    folder = make_lora("lora", base=make_gpt2(), target_modules=["c_attn"], bias=bias, fan_in_fan_out=True)
    with pytest.raises(AdapterError, match=r"got a bias in .*\.bias: train the adapter without it"):
        load_expert(folder, "e")


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
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type", "init_lora_weights",
    "use_dora", "target_modules", "base_model_name_or_path",
]  # fmt: skip


@given(config=st.dictionaries(st.sampled_from(SETTINGS), JSON), junk=st.binary(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bad_folders_raise_nothing_but_adapter_errors(
    config: dict[str, Any], junk: bytes, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1} | config))
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"m.lora_A.weight": torch.ones(1, 2), "m.lora_B.weight": torch.ones(3, 1)}, weights)
    base = nn.ModuleDict({"m": nn.Linear(2, 3)})
    for damage in (b"", junk):
        weights.write_bytes(damage + weights.read_bytes())
        with suppress(AdapterError):  # the one error allowed
            assert load_expert(tmp_path, "e").factors
        with suppress(AdapterError):
            assert load_expert(tmp_path, "e", base, convert_rank=2).factors


def test_a_folder_wins_over_a_hub_id(
    make_lora: MakeLora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org").mkdir()
    shutil.move(make_lora("lora"), tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    origin = load_expert("org/name", "e").origin
    assert origin is not None
    assert origin["source"] == "name"
