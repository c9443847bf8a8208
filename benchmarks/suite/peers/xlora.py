"""X-LoRA (arXiv 2402.07148) by PEFT: a classifier on the base's last hidden state scales frozen experts.

It stays in process: saved by PEFT and read again it would have lost experts. Three things are put right
from outside, none of which changes what it computes: experts have one shape and are named by number, the
classifier is float32 on a half-precision base too, as kshot's router is, and decoding has a KV cache.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, XLoraConfig, get_peft_model
from torch import nn
from transformers import DynamicCache

from kshot.mixture import LoraExpert
from suite.arm import Built, Setting
from suite.own.tuning import tuned
from suite.peers.group import chosen_experts
from suite.peers.one_shape import check_plain_layers, write_one_shape


def build(setting: Setting) -> Built:
    """Train the classifier on shots and rows, with PEFT's defaults: one scaling an expert for all layers."""
    experts = chosen_experts(setting)
    model = scale(setting.lm.model, experts, setting.work, seed=setting.seed)
    return tuned(setting, model, {"experts": list(experts)})


def scale(base: nn.Module, experts: Mapping[str, LoraExpert], work: Path, *, seed: int = 0) -> PeftModel:
    """Put the experts on a base behind an untrained classifier, which alone requires a gradient.

    Args:
        base: Without adapters; PEFT wants its `use_cache` off, which callers may pass as they like.
        experts: By name.
        work: Folder for what PEFT reads them from.
        seed: Of the classifier.

    Raises:
        AdapterError: An expert does not fit the base, or the base is quantised.
    """
    folders = write_one_shape(experts, base, work / "experts")
    settings: Any = base.config
    settings.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=settings.get_text_config().hidden_size,
        adapters={str(number): str(folder) for number, folder in enumerate(folders)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
    check_plain_layers(model)
    classifier: Any = model.base_model.internal_xlora_classifier.float()
    classifier.layers[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
    OwnCache().serve(model)
    return model.eval()


class OwnCache:
    """Gives the pass that X-LoRA makes to find its scalings a KV cache of its own.

    PEFT hands the caller's cache to both passes, so that each token would be in it twice.
    """

    def __init__(self) -> None:
        self._cache: DynamicCache | None = None
        self._of: Any = None  # the caller's cache that it goes with

    def serve(self, model: PeftModel) -> None:
        """Put the hook on the base's backbone, and `select_rows`, for rows that leave a batch, on `model`."""
        base: Any = model.get_base_model()
        self._config = base.config.get_text_config()
        self._layer = next(module for module in base.modules() if hasattr(module, "lora_A"))
        base.base_model.register_forward_pre_hook(self._give, with_kwargs=True)
        model.select_rows = self.select_rows  # type: ignore[assignment]

    def select_rows(self, kept_B: torch.Tensor) -> None:
        """Follow a batch that rows have left."""
        if self._cache is not None:
            self._cache.batch_select_indices(kept_B)

    def _give(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = kwargs.get("past_key_values")
        if given is None or not self._layer.disable_adapters:  # they are off in that pass alone
            return None
        if given is not self._of:
            self._cache, self._of = DynamicCache(config=self._config), given
        return args, {**kwargs, "past_key_values": self._cache}
