"""Experts as PEFT LoRA folders of one rank on the same modules, which PEFT's mixtures ask for.

Lower ranks are filled up with zeros, and so are modules that an expert lacks: no weight change differs, and
as both factors of the filling are 0 it has no gradient and stays 0 in training. Scalings are inside B.

r rank   I inputs of a module   O outputs
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import pad

from kshot.errors import AdapterError
from kshot.mixture import LoraExpert, LoraFactors, check_fits
from kshot.mixture.expert import is_transposed, linear_shape
from kshot.mixture.folder import WEIGHTS_NAME


def write_one_shape(experts: Mapping[str, LoraExpert], base: nn.Module, folder: Path) -> list[Path]:
    """Write a folder for each expert and return them in order.

    Modules are all linear layers of the base whose last name one of the experts has: PEFT finds them by it.

    Raises:
        AdapterError: An expert does not fit the base.
    """
    for expert in experts.values():
        check_fits(expert, base)
    named = {module.rpartition(".")[2] for expert in experts.values() for module in expert.factors}
    modules = {
        name: (module, shape)
        for name, module in base.named_modules()
        if name.rpartition(".")[2] in named and (shape := linear_shape(module))
    }
    r = max(factors.r for expert in experts.values() for factors in expert.factors.values())
    config = LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=sorted(named),
        fan_in_fan_out=any(is_transposed(module) for module, _ in modules.values()),
        task_type="CAUSAL_LM",
    )
    folders = [folder / f"expert-{number}" for number in range(len(experts))]
    for path, expert in zip(folders, experts.values(), strict=True):
        path.mkdir(parents=True, exist_ok=True)
        shapes = {name: shape for name, (_, shape) in modules.items()}
        save_file(_tensors(expert, shapes, r), path / WEIGHTS_NAME, metadata={"format": "pt"})
        config.save_pretrained(str(path))
    return folders


def check_plain_layers(model: nn.Module) -> None:
    """Refuse a base whose layers PEFT's mixtures pass over in silence.

    Raises:
        AdapterError: Some adapted layer is quantised.
    """
    from_peft = [module for module in model.modules() if hasattr(module, "lora_A")]
    others = sorted({type(module).__name__ for module in from_peft if type(module).__name__ != "Linear"})
    if others or not from_peft:
        raise AdapterError(
            f"expected an unquantised base, whose layers PEFT mixes, got {others or 'no such layer'}: "
            "load it without quantization"
        )


def _tensors(expert: LoraExpert, shapes: Mapping[str, tuple[int, int]], r: int) -> dict[str, torch.Tensor]:
    tensors = {}
    for module, (outputs, inputs) in shapes.items():
        factors = expert.factors.get(module) or _nothing(outputs, inputs)
        lacking = r - factors.r
        B_Or = factors.B_Or.float() * factors.scaling
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = pad(factors.A_rI.float(), (0, 0, 0, lacking)).contiguous()
        tensors[f"{key}.lora_B.weight"] = pad(B_Or, (0, lacking)).contiguous()
    return tensors


def _nothing(outputs: int, inputs: int) -> LoraFactors:
    return LoraFactors(torch.zeros(1, inputs), torch.zeros(outputs, 1), 1.0)
