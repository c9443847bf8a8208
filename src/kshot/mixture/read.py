"""From a folder, a Hub id or an expert already read to an expert of a mixture.

r rank   I inputs of a module   O outputs
"""

import math
import re
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture.convert import convert_adapter
from kshot.mixture.expert import ExpertOrigin, LoraExpert, LoraFactors, check_fits
from kshot.mixture.folder import (
    CONFIG_NAME,
    find_folder,
    kind_of_tensor,
    read_config,
    read_licence,
    read_tensors,
)
from kshot.mixture.kinds import PLAIN, adapter_kind

IN_MEMORY = "memory"  # the source of an expert that was made in code
DEFAULT_ALPHA = 8  # PEFT's default, for configs that do not say

_PREFIX = "base_model.model."  # PEFT's, before a module's name in the base
# Older PEFT kept the adapter's name in the key: `...q_proj.lora_A.default.weight`.
_FACTOR_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")


def load_expert(
    source: str | Path | LoraExpert,
    name: str,
    base_model: nn.Module | None = None,
    *,
    convert_rank: int | None = None,
) -> LoraExpert:
    """Load an expert of a mixture, converting it to a LoRA where it is another kind of adapter.

    A plain LoRA is taken as it is. Another adapter whose layers are linear in their input (DoRA, LoHa, OFT)
    becomes the LoRA of rank `convert_rank` that is nearest to its change of the weights (see
    `convert_adapter`); the errors are in the expert's `origin` and `conversion_errors`.

    Args:
        source: A PEFT adapter folder; a Hub id, `org/name` or `org/name@revision`; or an expert.
            What exists or is an absolute path is a folder.
        name: What the mixture calls the expert.
        base_model: What it belongs to; shapes are checked against it. Needed to convert; it is not changed.
        convert_rank: Largest rank of a converted expert, >= 1; None: refuse what is no plain LoRA.

    Returns:
        The expert, with an `origin`.

    Raises:
        ConfigError: `name` is empty or digits alone, `convert_rank` is below 1 or lacks `base_model`.
        AdapterError: The adapter is missing, damaged, of another base, or no change of linear layers.
    """
    if not name.strip() or name.strip().isdigit():
        raise ConfigError(
            f"an expert's name must not be empty or digits alone, got {name!r}: rename it, such as 'expert-1'"
        )
    if convert_rank is not None and convert_rank < 1:
        raise ConfigError(f"convert_rank must be at least 1, got {convert_rank}: choose a rank such as 16")
    if isinstance(source, LoraExpert):
        expert = replace(source, name=name, origin=_renamed(source, name))
    else:
        expert = _load_folder(source, name, base_model, convert_rank)
    if base_model is not None:
        check_fits(expert, base_model)
    return expert


def read_lora(folder: str | Path, name: str | None = None) -> LoraExpert:
    """Read a PEFT LoRA folder: any ranks, alphas, patterns, rsLoRA and target modules.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        name: The expert's name; the folder's if omitted.

    Raises:
        AdapterError: The folder is damaged, pickled, no LoRA, or a LoRA with more than `s B A x` in it
            (DoRA, biases, trained embeddings, `modules_to_save`, a changed base). Nothing is dropped.
    """
    folder = Path(folder)
    folder_name = folder.resolve().name
    return _load_folder(folder, folder_name if name is None else name, None, None)


def _load_folder(
    source: str | Path, name: str, base_model: nn.Module | None, convert_rank: int | None
) -> LoraExpert:
    folder, source_name = find_folder(source)
    config = read_config(folder)
    kind = adapter_kind(folder, config)
    if kind != PLAIN and convert_rank is None:
        raise AdapterError(
            f"{folder}: expected a plain LoRA, got {kind}, which is more than s*B*A*x: pass convert_rank= to "
            "load_expert or build_mixture to convert it to the nearest LoRA of that rank, or leave it out"
        )
    tensors = _without_base_copies(read_tensors(folder), base_model)
    named = config.get("base_model_name_or_path")
    base_name = named if isinstance(named, str) else None
    origin = ExpertOrigin(
        name=name,
        source=source_name,
        base_model=_without_path(base_name),
        licence=read_licence(folder),
        converted_from=None,
        conversion_error=None,
    )
    if kind == PLAIN:
        return LoraExpert(name, base_name, _plain_factors(folder, config, tensors), origin)
    assert convert_rank is not None  # else it was refused above
    if base_model is None:
        raise ConfigError(f"convert_rank={convert_rank} needs the base model, got none: pass base_model")
    done = convert_adapter(folder, config, tensors, base_model, convert_rank)
    origin |= {"converted_from": kind, "conversion_error": done.error}
    return LoraExpert(name, base_name, done.factors, origin, done.errors)


def _without_base_copies(
    tensors: dict[str, torch.Tensor], base_model: nn.Module | None
) -> dict[str, torch.Tensor]:
    """Leave out weights that are the base's own: PEFT saves embeddings and heads unasked if they are adapted.

    They are compared at the base's precision; whatever differs stays, and is refused with the rest.
    """
    if base_model is None:
        return tensors
    named = base_model.named_parameters(remove_duplicate=False)
    base = {name.replace(".base_layer.", "."): weight for name, weight in named}

    def is_copy(key: str, tensor: torch.Tensor) -> bool:
        weight = base.get(key.removeprefix(_PREFIX).replace(".base_layer.", "."))
        if weight is None or weight.is_meta or not weight.is_floating_point() or weight.shape != tensor.shape:
            return False
        return torch.equal(tensor.to(weight), weight.detach())

    return {key: tensor for key, tensor in tensors.items() if not is_copy(key, tensor)}


def _renamed(expert: LoraExpert, name: str) -> ExpertOrigin:
    if expert.origin is not None:
        return {**expert.origin, "name": name}
    return ExpertOrigin(
        name=name,
        source=IN_MEMORY,
        base_model=_without_path(expert.base_model),
        licence=None,
        converted_from=None,
        conversion_error=None,
    )


def _without_path(base_model: str | None) -> str | None:
    """Return a Hub id as it is, and of a path on somebody's machine the last part."""
    if base_model is None:
        return None
    for path in (Path(base_model), PureWindowsPath(base_model)):
        if path.is_absolute():
            return path.name
    return base_model


def _plain_factors(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, LoraFactors]:
    return {
        module: LoraFactors(A_rI, B_Or, _scaling(folder, config, module, A_rI.shape[0]))
        for module, (A_rI, B_Or) in _pair_tensors(folder, tensors).items()
    }


def _pair_tensors(
    folder: Path, tensors: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FACTOR_KEY.match(key)
        if match is None or match["side"] in sides.get(match["module"], {}):
            raise AdapterError(
                f"{folder}: expected lora_A and lora_B alone, once each, got {kind_of_tensor(key)} in {key}: "
                "train the adapter without it, or leave the adapter out"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if len(pair) != 2:
            lone, lacking = ("lora_A", "lora_B") if "A" in pair else ("lora_B", "lora_A")
            raise AdapterError(
                f"{folder}: expected both factors of {module}, got {lone} without {lacking}: save it again"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _scaling(folder: Path, config: dict[str, Any], module: str, r: int) -> float:
    stated_r = _number(folder, config, "r", "rank_pattern", module, default=r)
    if stated_r != r:
        raise AdapterError(
            f"{folder}: expected r={stated_r:g} in {module} as {CONFIG_NAME} says, got weights of rank {r}: "
            f"mend r or rank_pattern in {CONFIG_NAME}"
        )
    alpha = _number(folder, config, "lora_alpha", "alpha_pattern", module, default=DEFAULT_ALPHA)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _number(
    folder: Path, config: dict[str, Any], key: str, pattern_key: str, module: str, *, default: float
) -> float:
    """Return `config[key]` for `module`, with the pattern that PEFT itself would apply."""
    patterns = config.get(pattern_key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(
            f"{folder}: expected {pattern_key} as an object, got {patterns!r}: mend {CONFIG_NAME}"
        )
    try:
        value = patterns.get(get_pattern_key(list(patterns), module), config.get(key, default))
    except re.error as error:
        raise AdapterError(
            f"{folder}: expected regular expressions in {pattern_key}, got {error}: mend {CONFIG_NAME}"
        ) from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{folder}: expected {key} as a number, got {value!r}: mend {CONFIG_NAME}")
    return float(value)
