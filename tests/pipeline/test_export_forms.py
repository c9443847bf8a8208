"""Merged and GGUF exports: transformers and GGUF's reader find in them what the mixture computes."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, LoraFactors, build_mixture, constant_gates, read_lora
from kshot.pipeline import export_expert, export_gguf, export_merged, run
from kshot.pipeline.export_gguf import ARCHITECTURES, write_gguf_lora
from kshot.pipeline.export_merged import _merge

from ..tiny_task import write_tiny_task

LoraFolder = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path, tiny_model_folder: Path, lora_folder: LoraFolder) -> Path:
    """A run whose mixture is tuned."""
    task = write_tiny_task(tmp_path / "task", tiny_model_folder, lora_folder)
    run(task, tmp_path / "run", until="training")
    return tmp_path / "run"


def _logits(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids).logits
    return logits


def _mixture(run_folder: Path, base_folder: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    return PeftModel.from_pretrained(base, run_folder / "expert" / "adapter")


def test_all_forms_of_a_routed_mixture_agree(trained: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    merged = export_merged(trained, tmp_path / "merged")
    plain = export_expert(trained, tmp_path / "lora")
    in_gguf = export_gguf(trained, tmp_path / "gguf")
    assert merged.loss == plain.loss == in_gguf.loss
    assert merged.loss is not None
    assert merged.nll[0] == pytest.approx(merged.loss["mixture_nll"], abs=1e-4)
    assert merged.nll[1] == pytest.approx(merged.loss["constant_nll"], abs=1e-4)

    found = _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    mixture = _mixture(trained, tiny_model_folder)
    with constant_gates(mixture, json.loads((tmp_path / "merged" / "export.json").read_text())["gates"]):
        torch.testing.assert_close(found, _logits(mixture), rtol=0, atol=1e-4)
    lora = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_folder), tmp_path / "lora"
    )
    torch.testing.assert_close(found, _logits(lora), rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template

    for folder in ("merged", "lora", "gguf"):
        card = (tmp_path / folder / "README.md").read_text()
        assert f"KL {merged.loss['kl']:.4f}" in card
        assert "| aa |" in card or "| bb |" in card
    assert f"NLL {merged.nll[1]:.4f}." in (tmp_path / "merged" / "README.md").read_text()
    assert sorted(path.name for path in (tmp_path / "gguf").iterdir()) == ["README.md", "adapter.gguf"]


def test_fixed_gates_are_merged_exactly(trained: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    names = json.loads((trained / "experts" / "selection.json").read_text())["experts"]
    experts = {name: tmp_path / "task" / "bank" / name for name in names}
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    uniform = build_mixture(base, experts, fixed_gates=[1 / len(experts)] * len(experts))
    uniform.save_pretrained(str(trained / "expert" / "adapter"), save_embedding_layers=False)
    merged = export_merged(trained, tmp_path / "merged")
    assert merged.loss is None
    assert merged.nll[1] == pytest.approx(merged.nll[0], abs=1e-5)
    torch.testing.assert_close(
        _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")),
        _logits(uniform),
        rtol=0,
        atol=1e-4,
    )
    assert "computes what the tuned expert computes" in (tmp_path / "merged" / "README.md").read_text()
    with pytest.raises(ConfigError, match="expected a new folder"):
        export_merged(trained, tmp_path / "merged")


def _changes(file: Path, processor: TensorProcessor) -> dict[str, np.ndarray]:
    """Read the weight changes of a GGUF LoRA as llama.cpp scales them, in the order of transformers."""
    reader = GGUFReader(file)
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    found = {}
    for name in [one.removesuffix(".lora_a") for one in tensors if one.endswith(".lora_a")]:
        A_RD, B_OR = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        found[name] = processor.process(weights=alpha / len(A_RD) * B_OR @ A_RD, name=name).weights
    return found


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_against_transformers_reader_of_gguf(kind: str, tmp_path: Path) -> None:
    """transformers puts rows of a llama.cpp weight back in its own order, and knows where that is needed."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"q_proj": (32, 32), "k_proj": (16, 32), "v_proj": (16, 32), "o_proj": (32, 32)}
    factors = {
        f"model.layers.{layer}.self_attn.{module}": LoraFactors(
            torch.randn(r, inputs, generator=draw), torch.randn(outputs, r, generator=draw), 2.0 / r
        )
        for layer, r in ((0, 4), (1, 6))
        for module, (outputs, inputs) in shapes.items()
        if kind != "phi3" or module == "o_proj"
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = SimpleNamespace(model_type=kind, num_hidden_layers=2, tie_word_embeddings=True, **heads)
    write_gguf_lora(LoraExpert("one", None, factors), config, tmp_path / "a.gguf", name="one")

    reader = GGUFReader(tmp_path / "a.gguf")
    said = {
        key: reader.fields[key].contents() for key in ("general.type", "adapter.type", "general.architecture")
    }
    assert said == {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": said["general.architecture"],
    }
    processor = TENSOR_PROCESSORS.get(said["general.architecture"], TensorProcessor)(config=heads)
    found = _changes(tmp_path / "a.gguf", processor)
    assert len(found) == len(factors)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    for module, one in factors.items():
        _, _, layer, _, projection = module.split(".")
        expected = one.scaling * one.B_Or.numpy() @ one.A_rI.numpy()
        np.testing.assert_allclose(found[f"blk.{layer}.{names[projection]}.weight"], expected, atol=1e-4)


def test_a_run_in_gguf_is_its_plain_lora(trained: Path, tmp_path: Path) -> None:
    export_gguf(trained, tmp_path / "gguf")
    export_expert(trained, tmp_path / "lora")
    processor = TENSOR_PROCESSORS["llama"](config={"num_attention_heads": 4, "num_key_value_heads": 2})
    found = _changes(tmp_path / "gguf" / "adapter.gguf", processor)
    names = {"q_proj": "attn_q", "v_proj": "attn_v"}
    for module, one in read_lora(tmp_path / "lora").factors.items():
        _, _, layer, _, projection = module.split(".")
        expected = one.scaling * one.B_Or.float().numpy() @ one.A_rI.float().numpy()
        np.testing.assert_allclose(found[f"blk.{layer}.{names[projection]}.weight"], expected, atol=1e-5)


def test_what_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    factors = {"lm_head": LoraFactors(torch.ones(1, 32), torch.ones(64, 1), 1.0)}
    config = SimpleNamespace(model_type="llama", num_hidden_layers=2, tie_word_embeddings=True)
    with pytest.raises(AdapterError, match=r"expected modules that llama.cpp has in llama, got lm_head"):
        write_gguf_lora(LoraExpert("one", None, factors), config, tmp_path / "a.gguf")
    config.model_type = "gpt2"
    with pytest.raises(AdapterError, match=r"expected a base of llama, .* for GGUF, got gpt2"):
        write_gguf_lora(LoraExpert("one", None, factors), config, tmp_path / "a.gguf")


def test_a_merged_head_is_untied_from_the_embedding(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    factors = {"lm_head": LoraFactors(torch.ones(1, 32), torch.ones(64, 1), 0.5)}
    model = build_mixture(base, {"one": LoraExpert("one", None, factors)}, fixed_gates=[1.0])
    expected = _logits(model)
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = _merge(model, None)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(
        _logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, rtol=0, atol=1e-4
    )
