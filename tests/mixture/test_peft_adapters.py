"""Several mixtures on one base, through PEFT's calls: switch, disable, add, delete, count, unload."""

from operator import attrgetter

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kshot.errors import AdapterError
from kshot.mixture import MixtureConfig, MixtureLinear

from .architectures import (
    CASES,
    KINDS,
    left_padded,
    logits_of,
    make_base,
    make_mixture,
    token_ids,
    train,
)

pytestmark = pytest.mark.slow

kinds = pytest.mark.parametrize("kind", KINDS)
cases = pytest.mark.parametrize(("architecture", "kind"), CASES)


def two_mixtures(kind: str = "module_token", other: str = "layer_token") -> PeftModel:
    return make_mixture(other, make_mixture(kind), adapter_name="other", seed=2)


def trained_adapters(model: nn.Module) -> set[str]:
    """Names of the mixtures that have a parameter with a gradient; fails if one has it in a part of them."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".mixture_" not in name:
            assert not parameter.requires_grad, name
            continue
        adapter = name.split(".mixture_")[1].split(".")[1]
        assert found.setdefault(adapter, parameter.requires_grad) == parameter.requires_grad, name
    return {adapter for adapter, trained in found.items() if trained}


@cases
def test_disabling_is_the_base(architecture: str, kind: str) -> None:
    model, base = make_mixture(kind, make_base(architecture)), logits_of(make_base(architecture))
    want = logits_of(model)
    assert not torch.allclose(want, base, atol=0.1)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), base)
    assert torch.equal(logits_of(model), want)
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits_of(model), base)
    assert trained_adapters(model) == set()
    model.base_model.enable_adapter_layers()
    assert torch.equal(logits_of(model), want)
    assert trained_adapters(model) == {"default"}


@kinds
def test_switching_is_each_alone(kind: str) -> None:
    model = two_mixtures(kind)
    alone = {
        "default": logits_of(make_mixture(kind)),
        "other": logits_of(make_mixture("layer_token", seed=2)),
    }
    for name in ("default", "other", "default"):
        model.set_adapter(name)
        assert model.active_adapter == name
        assert torch.equal(logits_of(model), alone[name])
        assert trained_adapters(model) == {name}
    model.set_adapter("other", inference_mode=True)
    assert trained_adapters(model) == set()
    model.set_requires_grad("default")
    assert trained_adapters(model) == {"default"}


def test_two_active_mixtures_are_both_added() -> None:
    model = two_mixtures("fixed", "fixed")
    layer = next(module for module in model.modules() if isinstance(module, MixtureLinear))
    x = torch.randn(2, 5, layer.in_features)
    base = layer.base_layer(x)
    changes = []
    for names in ("default", "other", ["default", "other"]):
        model.base_model.set_adapter(names)
        changes.append(layer(x) - base)
    torch.testing.assert_close(changes[0] + changes[1], changes[2])
    assert trained_adapters(model) == {"default", "other"}


@kinds
def test_training_changes_the_active_mixture_alone(kind: str) -> None:
    model = two_mixtures(kind)
    model.set_adapter("other")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train(model)
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    own = {name for name in before if ".mixture_" in name and "other" in name.split(".")}
    assert changed <= own
    assert len(changed) > 0.9 * len(own)  # an expert that no token chose stays


@pytest.mark.parametrize("trained", [False, True])
def test_adding_and_loading_leave_the_gradients_of_others(trained: bool, tmp_path) -> None:
    model = make_mixture("layer_sequence")
    model.save_pretrained(tmp_path)
    if not trained:
        model.set_adapter("default", inference_mode=True)
    config = MixtureConfig.from_pretrained(tmp_path)
    config.inference_mode = False
    model.add_adapter("added", config)
    model.load_adapter(tmp_path, "loaded")
    assert trained_adapters(model) == ({"default"} if trained else set())
    model.load_adapter(tmp_path, "to_train", is_trainable=True)
    model.set_adapter("to_train")
    assert trained_adapters(model) == {"to_train"}


def test_a_mixture_added_through_peft_changes_nothing_yet() -> None:
    model = make_mixture("module_token")
    model.add_adapter("fresh", model.peft_config["default"])
    want = logits_of(model)
    model.set_adapter("fresh")
    assert torch.equal(logits_of(model), logits_of(make_base()))
    train(model)
    assert not torch.equal(logits_of(model), logits_of(make_base()))
    model.set_adapter("default")
    assert torch.equal(logits_of(model), want)


def test_a_refused_adapter_leaves_the_model_as_it_was() -> None:
    model = make_mixture("module_token")
    want, keys = logits_of(model), set(model.state_dict())
    foreign = make_mixture("module_token", make_base("gpt2")).peft_config["default"]
    with pytest.raises(AdapterError, match="belongs to another base"):
        model.add_adapter("foreign", foreign)
    assert list(model.peft_config) == list(model.base_model.peft_config) == ["default"]
    assert set(model.state_dict()) == keys
    assert torch.equal(logits_of(model), want)


@kinds
def test_deleting_an_inactive_mixture(kind: str) -> None:
    model = two_mixtures("module_token", kind)
    want = logits_of(model)
    model.delete_adapter("other")
    assert list(model.peft_config) == ["default"]
    assert model.active_adapters == ["default"]
    assert torch.equal(logits_of(model), want)
    assert_gone(model, "other")
    assert hooks_of(model) == 0


@kinds
@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted")
def test_deleting_the_active_mixture_and_then_the_last(kind: str) -> None:
    model = two_mixtures(kind, "module_sequence")
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert trained_adapters(model) == {"other"}
    assert torch.equal(logits_of(model), logits_of(make_mixture("module_sequence", seed=2)))
    assert_gone(model, "default")
    model.delete_adapter("other")
    assert model.active_adapters == []
    assert torch.equal(logits_of(model.base_model), logits_of(make_base()))
    assert hooks_of(model) == 0


def test_deleting_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="Adapter nobody does not exist"):
        make_mixture().delete_adapter("nobody")


@cases
def test_unloading_gives_the_base_back(architecture: str, kind: str) -> None:
    base, fresh = make_base(architecture), make_base(architecture)
    modules = {name: module for name, module in base.named_modules() if name}
    model = two_mixtures_on(base, kind)
    train(model)
    unloaded = model.unload()
    assert unloaded is base
    assert {name: module for name, module in base.named_modules() if name} == modules
    state, want = base.state_dict(), fresh.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[name], want[name]) for name in want)
    assert not hasattr(base, "peft_config")
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())
    assert hooks_of(base) == 0
    assert torch.equal(logits_of(base, **left_padded()), logits_of(fresh, **left_padded()))
    assert torch.equal(logits_of(make_mixture(kind, base)), logits_of(make_mixture(kind, fresh)))


def two_mixtures_on(base: nn.Module, kind: str) -> PeftModel:
    return make_mixture("layer_sequence", make_mixture(kind, base), adapter_name="other")


@kinds
def test_parameters_are_counted(kind: str) -> None:
    model = make_mixture(kind)
    config, base = model.peft_config["default"], make_base()
    trainable, total = model.get_nb_trainable_parameters()
    want = 0
    for name in config.module_names:
        linear = base.get_submodule(name)
        r = sum(config.sizes(name)[0]) + config.shared_r
        want += r * (linear.in_features + linear.out_features)
        if config.fixed_gates is None and config.router_owner(name) == name:
            want += config.num_choices * linear.in_features
            want += config.num_choices * (config.router_prior is not None)
    assert trainable == want
    assert total == want + sum(parameter.numel() for parameter in base.parameters())
    model.set_adapter("default", inference_mode=True)
    assert model.get_nb_trainable_parameters() == (0, total)


@kinds
def test_statuses(kind: str) -> None:
    model = two_mixtures(kind)
    layers, status = model.get_layer_status(), model.get_model_status()
    names = {f"model.{name}" for name in model.peft_config["default"].module_names}
    assert {layer.name for layer in layers} == names
    for layer in layers:
        assert layer.module_type == "MixtureLinear"
        assert layer.enabled
        assert layer.active_adapters == ["default"]
        assert layer.merged_adapters == []
        assert layer.available_adapters == ["default", "other"]
        assert layer.requires_grad == {"default": True, "other": False}
        assert layer.devices == {"default": ["cpu"], "other": ["cpu"]}
    assert status.base_model_type == "LlamaForCausalLM"
    assert status.adapter_model_type == "MixtureModel"
    assert status.peft_types == {"default": "KSHOT_MIXTURE", "other": "KSHOT_MIXTURE"}
    assert status.num_adapter_layers == len(names)
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.merged_adapters == []
    assert status.available_adapters == ["default", "other"]
    assert status.requires_grad == {"default": True, "other": False}
    assert (status.trainable_params, status.total_params) == model.get_nb_trainable_parameters()
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


def test_after_prepare_model_for_kbit_training() -> None:
    base = prepare_model_for_kbit_training(make_base(), use_gradient_checkpointing=False)
    model = make_mixture("layer_token", base)
    assert trained_adapters(model) == {"default"}
    model.enable_input_require_grads()
    assert model.get_input_embeddings()(token_ids()).requires_grad


def hooks_of(model: nn.Module) -> int:
    """Hooks of a forward on any module."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_gone(model: nn.Module, adapter_name: str) -> None:
    assert not any(adapter_name in name.split(".") for name in model.state_dict())
    for layer in model.modules():
        if isinstance(layer, MixtureLinear):
            for attribute in (*layer.adapter_layer_names, *layer.other_param_names):
                assert adapter_name not in attrgetter(attribute)(layer), attribute
