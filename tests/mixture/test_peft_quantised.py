"""Mixtures on quantised bases: they run, train and are saved as on any other; merging is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from kshot.errors import AdapterError

from .architectures import left_padded, logits_of, make_base, make_experts, make_mixture, train

pytestmark = pytest.mark.slow

kinds = pytest.mark.parametrize("kind", ["module_token", "layer_sequence", "null_shared_prior", "fixed"])
LoadQuantised = Callable[[], nn.Module]
SIZES = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 inputs share a scale in 4 bits


def torchao_int8() -> Any:
    reason = "needs torchao: pip install 'kshot[quantised]'"
    quantization = pytest.importorskip("torchao.quantization", reason=reason)
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))


def bitsandbytes_config(**settings: Any) -> Any:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'kshot[quantised]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**settings)


def bitsandbytes_int8() -> Any:
    return bitsandbytes_config(load_in_8bit=True)


def bitsandbytes_nf4() -> Any:
    return bitsandbytes_config(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(**SIZES).save_pretrained(folder)
    return folder


@pytest.fixture(params=[torchao_int8, bitsandbytes_int8, bitsandbytes_nf4], ids=lambda make: make.__name__)
def load_quantised(request: pytest.FixtureRequest, base_folder: Path) -> LoadQuantised:
    """Loads the same base each time, as users do."""
    config = request.param()
    return lambda: AutoModelForCausalLM.from_pretrained(base_folder, quantization_config=config).eval()


def mixture_on(base: nn.Module, kind: str) -> PeftModel:
    return make_mixture(kind, base, experts=make_experts(make_base(**SIZES)))


@kinds
def test_runs_trains_and_is_saved(kind: str, load_quantised: LoadQuantised, tmp_path: Path) -> None:
    base = logits_of(load_quantised())
    untrained = logits_of(mixture_on(load_quantised(), kind))
    model = train(
        mixture_on(load_quantised(), kind)
    )  # before it is evaluated: bitsandbytes then packs for good
    trained = logits_of(model)
    assert not torch.equal(trained, untrained)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), base)  # the base is as it was
    assert torch.equal(logits_of(copy.deepcopy(model).unload()), base)
    model.save_pretrained(tmp_path)
    assert all(".mixture_" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    for loading in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(load_quantised(), tmp_path, **loading)
        assert torch.equal(logits_of(loaded), trained), loading


@kinds
def test_against_the_base_in_full_precision(kind: str, load_quantised: LoadQuantised) -> None:
    quantised, plain = load_quantised(), make_base(**SIZES)
    want, base = logits_of(mixture_on(plain, kind)), logits_of(make_base(**SIZES))
    error = (logits_of(quantised) - base).norm() / base.norm()
    assert error > 1e-4  # it is quantised
    assert (logits_of(mixture_on(quantised, kind)) - want).norm() / want.norm() < 6 * error


def test_merging_is_refused(load_quantised: LoadQuantised) -> None:
    model = mixture_on(load_quantised(), "fixed")
    want = logits_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            AdapterError, match=r"expected a floating-point base to merge into, got .*unquantised"
        ):
            merge()
        assert torch.equal(logits_of(model), want)


@pytest.mark.parametrize("kind", ["layer_token", "layer_sequence"])
def test_generates_as_without_a_cache(kind: str, load_quantised: LoadQuantised) -> None:
    model = mixture_on(load_quantised(), kind)
    settings = {"max_new_tokens": 4, "do_sample": False}
    cached = model.generate(**left_padded(), **settings)
    assert torch.equal(model.generate(**left_padded(), **settings, use_cache=False), cached)


def test_after_prepare_model_for_kbit_training(load_quantised: LoadQuantised) -> None:
    base = prepare_model_for_kbit_training(load_quantised(), use_gradient_checkpointing=False)
    model = mixture_on(base, "layer_sequence").train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model(**left_padded(), labels=left_padded()["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
