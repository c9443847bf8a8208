"""The models that are compared, around one base whose weights they share."""

import copy
import warnings
from pathlib import Path

import torch
from peft import ArrowConfig, LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from torch import nn

from kshot.mixture import build_mixture

NUM_EXPERTS = 4
R = 16
TARGETS = ["q_proj", "v_proj"]


def sharing_weights(base: nn.Module) -> nn.Module:
    """Return a copy with modules, hooks and settings of its own and the base's own tensors."""
    shared = [*base.parameters(), *base.buffers()]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in shared})


def single_lora(base: nn.Module, seed: int = 0) -> PeftModel:
    """A fresh LoRA on `TARGETS`, as PEFT starts it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=R, lora_alpha=2 * R, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(sharing_weights(base), config)


def write_experts(base: nn.Module, folder: Path) -> list[str]:
    """Write `NUM_EXPERTS` LoRA folders with random weights, B included."""
    folders = []
    for number in range(NUM_EXPERTS):
        model = single_lora(base, seed=number)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01)
        model.save_pretrained(str(folder / f"expert-{number}"), save_embedding_layers=False)
        folders.append(str(folder / f"expert-{number}"))
    return folders


def build_sides(base: nn.Module, folder: Path) -> dict[str, nn.Module]:
    """Return every side; experts, and a router where it can be trained, require a gradient on all of them."""
    folders = write_experts(base, folder)
    experts = {f"expert-{number}": path for number, path in enumerate(folders)}

    def mixture(**options: object) -> PeftModel:
        return build_mixture(sharing_weights(base), experts, **options)

    return {
        "base": base,
        "PEFT LoRA": PeftModel.from_pretrained(sharing_weights(base), folders[0], is_trainable=True),
        "mixture": mixture(top_k=2),
        "mixture, a router a layer": mixture(top_k=2, router_scope="layer"),
        "mixture, all experts on": mixture(top_k=NUM_EXPERTS),
        "PEFT Arrow": _arrow(base, folders),
        "PEFT X-LoRA": _x_lora(base, folders),
    }


def _arrow(base: nn.Module, folders: list[str]) -> PeftModel:
    """Arrow at its default of 3 experts a token; a first call builds its prototypes, never trained."""
    config = ArrowConfig(top_k=min(3, len(folders)), rng_seed=0)
    model: PeftModel = create_arrow_model(sharing_weights(base), folders, config)
    model.set_requires_grad("arrow_router", requires_grad=False)
    model.set_requires_grad([f"task_{number}" for number in range(len(folders))])
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]))
    return model


def _x_lora(base: nn.Module, folders: list[str]) -> PeftModel:
    """X-LoRA as it comes: one gate an expert for all layers, no KV cache; never reloaded."""
    own = sharing_weights(base)
    own.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=own.config.hidden_size,
        adapters={str(number): path for number, path in enumerate(folders)},
        use_trainable_adapters=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(own, config)
