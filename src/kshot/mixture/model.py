"""The mixture as a PEFT tuner, so that PEFT's own calls save, load, switch, disable and merge it.

Importing this module makes `peft_type` KSHOT_MIXTURE known to PEFT: import `kshot.mixture` before
`PeftModel.from_pretrained`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from torch.utils.hooks import RemovableHandle

from kshot.errors import AdapterError, ConfigError
from kshot.mixture.config import PEFT_TYPE, MixtureConfig
from kshot.mixture.expert import linear_shape
from kshot.mixture.layer import MixtureLinear
from kshot.mixture.router import Router
from kshot.mixture.routing import Routing, check_one_stream
from kshot.mixture.row_adapters import BASE_ROWS, RowAdapters


class MixtureModel(BaseTuner):
    """Puts a `MixtureLinear` in place of every module that a `MixtureConfig` names.

    State-dict keys are `<module>.mixture_A.<adapter>` and so on; experts are stacked, their names no keys.
    Made with PEFT alone, `get_peft_model(base, MixtureConfig(...))`, the experts are fresh LoRAs that change
    nothing yet; `build_mixture` fills in trained ones.
    """

    prefix: str = "mixture_"
    tuner_layer_cls = MixtureLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's attribute; modules come from the config

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.routing = Routing()
        self._hooks: list[RemovableHandle] = []
        super().__init__(model, *args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the layers in, as PEFT does, and connect those that share a router."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = _own(self.peft_config[adapter_name])
        layers = mixture_layers(self.model, adapter_name)
        for module, layer in layers.items():
            layer.routing = self.routing
            owner = config.router_owner(module)
            if owner != module:
                layer.lenders[adapter_name] = cast(Router, layers[owner].mixture_router[adapter_name])
        if config.router_granularity == "sequence" and not self._hooks:
            self._hooks = self.routing.watch(self.model)

    def route_by_prompt(self, prompt_BT: torch.Tensor) -> AbstractContextManager[None]:
        """Say which tokens of the passes in a block are the prompt, (B, T), where labels do not say it.

        A sequence-level router decides by them alone. Without labels and without this it reads every token
        that is not padding: right for a prompt that is to be continued, and a leak where the answer is there.
        """
        return self.routing.given_prompt(prompt_BT)

    def select_rows(self, kept: torch.Tensor) -> None:
        """Follow a batch that rows have left: a sequence-level router remembers what it decided for each.

        Args:
            kept: (B,) indices into the rows so far.
        """
        self.routing.select_rows(kept)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's place for `adapter_names`: a mixture, or `__base__`, for each row of the batch."""
        names: Sequence[str] | None = kwargs.get("adapter_names")
        if _prefills_in_chunks(kwargs) and self._hooks:
            raise ConfigError(
                "expected the prompt in one pass, which a sequence-level router decides on, got "
                "prefill_chunk_size: drop it"
            )
        with self.routing.one_call():
            if names is None:
                yield
                return
            with self._rows_of_adapters(names, args, kwargs):
                yield

    @contextmanager
    def _rows_of_adapters(
        self, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[None]:
        layers = [module for module in self.model.modules() if isinstance(module, MixtureLinear)]
        self._check_names(names, layers)
        inputs = _inputs_of_call(args, kwargs)  # PEFT hides those of a forward, and shows those of a generate
        if inputs is not None and len(inputs) != len(names):
            raise ConfigError(f"expected one of adapter_names a row, {len(inputs)}, got {len(names)}")
        rows = RowAdapters(names, may_repeat=inputs is not None)
        for layer in layers:
            layer.row_adapters = rows
        try:
            yield
        finally:
            for layer in layers:
                layer.row_adapters = None

    def _check_names(self, names: Sequence[str], layers: list[MixtureLinear]) -> None:
        if isinstance(names, str):
            raise ConfigError(f"expected adapter_names as a list, got {names!r}: name one for each row")
        if self.training:
            raise ConfigError("expected evaluation mode with adapter_names, got training: call model.eval()")
        unknown = sorted({*names} - {BASE_ROWS, *self.peft_config})
        if unknown:
            raise ConfigError(
                f"expected adapter_names among {sorted(self.peft_config)} and {BASE_ROWS}, got {unknown}"
            )
        if any(layer.merged for layer in layers):
            raise ConfigError("expected unmerged mixtures with adapter_names, got merged ones: unmerge them")

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete a mixture, and the hooks with the last that needs them."""
        super().delete_adapter(adapter_name)
        if not any(_own(config).router_granularity == "sequence" for config in self.peft_config.values()):
            self._remove_hooks()

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge as PEFT does, but in no layer if one of them refuses.

        Raises:
            AdapterError: See `MixtureLinear.merge`.
        """
        self._check_merge(safe_merge, adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _check_merge(self, safe_merge: bool, adapter_names: list[str] | None) -> None:
        for module in self.model.modules():
            if isinstance(module, MixtureLinear):
                module.check_merge(safe_merge, adapter_names)

    def _check_merge_allowed(self) -> None:
        """PEFT warns here of embeddings tied to a merged head; `MixtureLinear.merge` unties them."""

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_merge(safe_merge, adapter_names)
        unload: Any = super()._unload_and_optionally_merge  # its annotation forgets what it returns
        base: nn.Module = unload(merge, progressbar, safe_merge, adapter_names)
        self._remove_hooks()
        return base

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Refuse a config of another base before anything is changed.

        Raises:
            AdapterError: Names the first module that is missing or not linear.
            ConfigError: Routing by sequence, with an encoder-decoder.
        """
        config = _own(peft_config)
        if config.router_granularity == "sequence":
            check_one_stream(model)
        module_names = config.module_names
        modules = dict(model.named_modules())
        strange = [
            name for name in module_names if name not in modules or linear_shape(modules[name]) is None
        ]
        if strange:
            raise AdapterError(
                f"the mixture belongs to another base: expected a linear layer {strange[0]}, got none; "
                f"{len(strange)} of {len(module_names)} modules are missing: load its own base"
            )
        config.assign_routers(model)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> bool:
        return _own(peft_config).covers(key)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, MixtureLinear):
            target.update_layer(adapter_name, _own(peft_config), current_key)
        else:
            layer = MixtureLinear(target, adapter_name, _own(peft_config), current_key)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        """Only put a module in its place: PEFT would move it too, as layers do themselves unless on meta."""
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Let PEFT cast, then freeze again what was frozen: its cast makes a ParameterDict trainable."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trained)


def mixture_layers(model: nn.Module, adapter_name: str) -> dict[str, MixtureLinear]:
    """The layers that hold a mixture, by their module's name in the base model."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return {
        name: module
        for name, module in base.named_modules()
        if isinstance(module, MixtureLinear) and adapter_name in module.mixture_A
    }


@contextmanager
def watching(model: nn.Module) -> Iterator[None]:
    """Let the layers know, in the passes of the block, which tokens are padding."""
    tuner = model.base_model if isinstance(model, PeftModel) else model
    hooks = tuner.routing.watch(tuner.model) if isinstance(tuner, MixtureModel) else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def mixture_config(model: nn.Module, adapter_name: str) -> MixtureConfig:
    """The settings of one of a model's mixtures.

    Raises:
        ConfigError: The model has no mixture of that name.
    """
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    config = configs.get(adapter_name)
    if not isinstance(config, MixtureConfig):
        raise ConfigError(
            f"expected a mixture named {adapter_name!r}, got {sorted(configs) or 'no adapters'}: "
            "name one of these, or make one with build_mixture"
        )
    return config


def _inputs_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    named = (kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
    inputs = args[0] if args else next((one for one in named if one is not None), None)
    return inputs if isinstance(inputs, torch.Tensor) else None


def _prefills_in_chunks(kwargs: dict[str, Any]) -> bool:
    settings = kwargs.get("generation_config")
    return bool(kwargs.get("prefill_chunk_size") or getattr(settings, "prefill_chunk_size", None))


def _own(peft_config: PeftConfig) -> MixtureConfig:
    assert isinstance(peft_config, MixtureConfig)  # PEFT picks the tuner by the config's type
    return peft_config


# PEFT's tables are typed by its closed enum, and take any string (peft >= 0.21).
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = MixtureConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = MixtureModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = MixtureModel.prefix  # type: ignore[index]
