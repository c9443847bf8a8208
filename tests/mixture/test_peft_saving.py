"""PEFT's calls that write and read a mixture: what is in the file, and the same logits to the bit from it."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.save_and_load import get_base_model_state_dict
from safetensors.torch import load_file, save_file

from kshot.mixture import MixtureConfig

from .architectures import (
    CASES,
    HALF_CASES,
    KINDS,
    left_padded,
    logits_of,
    make_base,
    make_experts,
    make_mixture,
    token_ids,
    train,
)

pytestmark = pytest.mark.slow

WEIGHTS = "adapter_model.safetensors"


def mixture_tensors(model: PeftModel, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """The mixture's parameters under the names they have in a file."""
    return {
        name.replace(f".{adapter_name}", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if ".mixture_" in name and adapter_name in name.split(".")
    }


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_roundtrip_is_bitwise_equal(architecture: str, kind: str, tmp_path: Path) -> None:
    model = train(make_mixture(kind, make_base(architecture)))
    want = logits_of(model)
    model.save_pretrained(tmp_path)
    for loading in ({}, {"adapter_name": "other", "low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(make_base(architecture), tmp_path, **loading).eval()
        assert torch.equal(logits_of(loaded), want), loading
    for loading in ({}, {"low_cpu_mem_usage": True}):
        loaded = make_mixture("fixed", make_base(architecture), adapter_name="there_first")
        before = logits_of(loaded)
        result = loaded.load_adapter(tmp_path, "added", **loading)
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert torch.equal(logits_of(loaded), before)
        loaded.set_adapter("added")
        assert torch.equal(logits_of(loaded), want), loading
        assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())


NEW_PROCESS = """
import sys, pathlib, torch, kshot.mixture
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
batch, logits = load_file(folder / "batch.safetensors"), {}
for kind in sys.argv[2:]:
    base = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    model = PeftModel.from_pretrained(base, folder / kind).eval()
    with torch.no_grad():
        logits[kind] = model(**batch).logits
save_file(logits, folder / "logits.safetensors")
"""


def test_roundtrip_in_a_new_process_is_bitwise_equal(tmp_path: Path) -> None:
    make_base().save_pretrained(tmp_path / "base")
    batch, want = left_padded(), {}
    save_file(batch, tmp_path / "batch.safetensors")
    for kind in KINDS:
        model = train(make_mixture(kind))
        model.save_pretrained(tmp_path / kind)
        want[kind] = logits_of(model, **batch)
    subprocess.run([sys.executable, "-c", NEW_PROCESS, str(tmp_path), *KINDS], check=True, timeout=120)
    got = load_file(tmp_path / "logits.safetensors")
    assert {kind for kind in KINDS if not torch.equal(got[kind], want[kind])} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_holds_the_mixture_alone(kind: str, tmp_path: Path) -> None:
    model = train(make_mixture(kind))
    model.save_pretrained(tmp_path)
    saved, want = load_file(tmp_path / WEIGHTS), mixture_tensors(model)
    assert saved.keys() == want.keys()
    assert all(torch.equal(saved[name], want[name]) for name in want)
    trainable, _ = model.get_nb_trainable_parameters()
    header = 8 + int.from_bytes((tmp_path / WEIGHTS).read_bytes()[:8], "little")
    assert (tmp_path / WEIGHTS).stat().st_size == header + 4 * trainable
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "adapter_config.json", WEIGHTS}


@pytest.mark.parametrize("tied", [False, True])
def test_a_mixture_on_the_head_saves_no_embedding(tied: bool, tmp_path: Path) -> None:
    base = make_base(tie_word_embeddings=tied)
    model = train(make_mixture("layer_token", base, experts=make_experts(base, head=True)))
    assert "base_model.model.lm_head.mixture_A.default" in model.state_dict()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS).keys() == mixture_tensors(model).keys()
    loaded = PeftModel.from_pretrained(make_base(tie_word_embeddings=tied), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_only_the_selected_adapter_is_saved(tmp_path: Path) -> None:
    """Names that hold one another are kept apart, and others go to folders of their own."""
    model = make_mixture("layer_token")
    names = ("default2", "other_default", "foodefault_bar", "efaul")
    for name in names:
        make_mixture("module_token", model, adapter_name=name, seed=len(name))
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert load_file(tmp_path / "one" / WEIGHTS).keys() == mixture_tensors(model).keys()
    assert {path.name for path in (tmp_path / "one").iterdir() if path.is_dir()} == set()
    model.save_pretrained(tmp_path / "all")
    assert {path.name for path in (tmp_path / "all").iterdir() if path.is_dir()} == set(names)
    loaded = PeftModel.from_pretrained(make_base(), tmp_path / "all" / "efaul").eval()
    model.set_adapter("efaul")
    assert torch.equal(logits_of(loaded), logits_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_config_roundtrip(kind: str, tmp_path: Path) -> None:
    model = make_mixture(kind)
    config = model.peft_config["default"]
    model.save_pretrained(tmp_path)
    for read in (PeftConfig, MixtureConfig):
        got = read.from_pretrained(tmp_path)
        assert type(got) is MixtureConfig
        assert got.inference_mode
        assert replace(got, inference_mode=False).to_dict() == config.to_dict()
    for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), replace(config)):
        assert again.to_dict() == config.to_dict()
        assert again.module_names == config.module_names
    given = PeftModel.from_pretrained(make_base(), tmp_path, config=config)
    assert given.peft_config["default"] is config
    assert torch.equal(logits_of(given), logits_of(model))


def test_state_dict_roundtrip(tmp_path: Path) -> None:
    model = train(make_mixture("null_shared_prior"))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = make_mixture("null_shared_prior", seed=2)
    assert not torch.equal(logits_of(fresh), logits_of(model))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert torch.equal(logits_of(fresh), logits_of(model))


def test_peft_state_dict_roundtrip() -> None:
    model = train(make_mixture("layer_token"))
    tensors = get_peft_model_state_dict(model)
    fresh = make_mixture("layer_token", seed=2)
    result = set_peft_model_state_dict(fresh, tensors)
    assert not result.unexpected_keys
    assert torch.equal(logits_of(fresh), logits_of(model))
    base = make_base().state_dict()
    got = get_base_model_state_dict(model)
    assert got.keys() == base.keys()
    assert all(torch.equal(got[name], base[name]) for name in base)


@pytest.mark.parametrize(("kind", "dtype"), HALF_CASES)
def test_half_precision_roundtrip(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = train(make_mixture(kind, make_base(dtype=dtype)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(dtype=dtype), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert logits_of(model).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_follow_the_base_in_dtype_if_told(dtype: torch.dtype, tmp_path: Path) -> None:
    """As with LoRA: float32 unless `autocast_adapter_dtype=False`. The router is float32 in any case."""

    def dtypes(model: PeftModel, name: str) -> tuple[set[torch.dtype], set[torch.dtype]]:
        parameters = {
            key: p for key, p in model.named_parameters() if f".{name}" in key and ".mixture_" in key
        }
        routers = {p.dtype for key, p in parameters.items() if "mixture_router" in key}
        return routers, {p.dtype for key, p in parameters.items() if "mixture_router" not in key}

    model = train(make_mixture("null_shared_prior", make_base(dtype=dtype)))
    assert dtypes(model, "default") == ({torch.float32}, {torch.float32})
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_base(dtype=dtype), tmp_path, autocast_adapter_dtype=False)
    loaded.load_adapter(tmp_path, "later", autocast_adapter_dtype=False)
    loaded.add_adapter("added", model.peft_config["default"], autocast_adapter_dtype=False)
    for name in ("default", "later", "added"):
        assert dtypes(loaded, name) == ({torch.float32}, {dtype}), name
    assert torch.isfinite(logits_of(loaded)).all()


def test_auto_class_finds_the_base(tmp_path: Path) -> None:
    make_base().save_pretrained(tmp_path / "base")
    base = type(make_base()).from_pretrained(tmp_path / "base")
    model = train(make_mixture("layer_sequence", base))
    model.save_pretrained(tmp_path / "mixture")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "mixture").eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


@pytest.mark.parametrize("kind", ["module_token", "layer_sequence"])
def test_transformers_loads_it_without_peft_model(kind: str, tmp_path: Path) -> None:
    model = train(make_mixture(kind))
    model.save_pretrained(tmp_path)
    base = make_base()
    base.load_adapter(tmp_path)
    assert torch.equal(logits_of(base, **left_padded()), logits_of(model, **left_padded()))
    ids = token_ids()
    assert torch.equal(base.generate(ids, max_new_tokens=3), model.generate(input_ids=ids, max_new_tokens=3))
