"""Put any adapter that PEFT knows on a stand-in for its base model."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, cast

import peft
import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from kshot.errors import AdapterError
from kshot.mixture.folder import kind_of_tensor
from kshot.mixture.stand_in import stand_in_for

# They name the base or tell what training did; some would load other code or change the base. What bias and
# modules_to_save announce is refused when the file holds it.
_UNUSED_SETTINGS = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "init_lora_weights",
    "lora_bias", "lora_ga_config", "loftq_config", "megatron_config", "megatron_core", "modules_to_save",
    "peft_version", "revision", "runtime_config", "task_type",
})  # fmt: skip


class AdaptedLayer(nn.Module, BaseTunerLayer):
    """What all of PEFT's layers with an adapter are, for type checkers."""


class _LoadResult(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]


def put_on_stand_in(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], base_model: nn.Module
) -> dict[str, AdaptedLayer]:
    """Return the layers that an adapter is on, by their module's name; the base and the random state stay.

    Args:
        folder: Named in errors.
        config: Its settings.
        tensors: Its weights, as stored.
        base_model: The model that it belongs to.

    Raises:
        AdapterError: PEFT cannot put it there, or a tensor has no place in a linear layer, or is missing.
    """
    with torch.random.fork_rng(devices=[]):
        kind, settings = _peft_config(folder, config)
        stand_in = stand_in_for(base_model)
        own = {id(parameter) for parameter in stand_in.parameters()}
        try:
            model = get_peft_model(stand_in, settings).eval()
            names = {name for name, tensor in model.named_parameters() if id(tensor) in own}
            for key in tensors.keys() & names:  # loading it would write to the base's own memory
                raise _no_place(folder, key, kind)
            result = cast(_LoadResult, set_peft_model_state_dict(model, tensors))
        except AdapterError:
            raise
        except Exception as error:  # a stranger's adapter: whatever PEFT trips over, the adapter is at fault
            raise AdapterError(
                f"{folder}: expected a {kind.value} adapter of this base model, got: "
                f"{' '.join(str(error).split())}: choose adapters of this base model"
            ) from error
    for key in result.unexpected_keys:
        raise _no_place(folder, key, kind)
    layers = _adapted_layers(model)
    for name in _unfilled(model, layers, set(result.missing_keys)):
        raise AdapterError(f"{folder}: expected {name}, got none: save the adapter again")
    return layers


def _peft_config(folder: Path, config: dict[str, Any]) -> tuple[PeftType, PeftConfig]:
    kind = PeftType(config["peft_type"])
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    known = {field.name for field in dataclasses.fields(config_class)}
    settings = {key: value for key, value in config.items() if key not in _UNUSED_SETTINGS}
    strange = sorted(key for key, value in settings.items() if key not in known and value)
    if strange:
        raise AdapterError(
            f"{folder}: expected settings of a {kind.value} adapter that PEFT {peft.__version__} knows, "
            f"got {strange}: upgrade peft"
        )
    try:
        made = config_class(**{key: value for key, value in settings.items() if key in known})
    except Exception as error:  # a stranger's settings: whatever PEFT trips over, they are at fault
        raise AdapterError(
            f"{folder}: expected settings of a {kind.value} adapter, got: {error}: save it again"
        ) from error
    made.inference_mode = True
    return kind, made


def _no_place(folder: Path, key: str, kind: PeftType) -> AdapterError:
    own = PEFT_TYPE_TO_PREFIX_MAPPING[kind] in key and not key.endswith(".bias")
    reason = "no linear layer of the base is there" if own else f"it is {kind_of_tensor(key)}"
    return AdapterError(
        f"{folder}: expected weights of the base's linear layers alone, got {key}, but {reason}: "
        "train the adapter without it, or leave the adapter out"
    )


def _adapted_layers(model: PeftModel) -> dict[str, AdaptedLayer]:
    """The outermost ones: adapters on several parameters of a module lie one in another."""
    layers: dict[str, AdaptedLayer] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, BaseTunerLayer) and not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = cast(AdaptedLayer, module)
    return layers


def _unfilled(model: PeftModel, layers: dict[str, AdaptedLayer], missing_keys: set[str]) -> list[str]:
    """Name trained tensors that the file did not hold, under any of the names that layers share them by."""
    named = list(model.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for name, parameter in named if name not in missing_keys}
    trained = {
        id(parameter)
        for layer in layers.values()
        for attribute in layer.adapter_layer_names
        if isinstance(container := getattr(layer, attribute, None), nn.Module)
        for parameter in container.parameters()
    }
    return [name for name, parameter in named if id(parameter) in trained - filled]
