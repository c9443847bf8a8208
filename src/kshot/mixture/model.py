"""The mixture as a PEFT tuner, so that PEFT's own calls save, load, switch, disable and merge it.

Importing this module makes `peft_type` KSHOT_MIXTURE known to PEFT: import `kshot.mixture` before
`PeftModel.from_pretrained`.
"""

from typing import Any

from peft import PeftConfig, PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture.config import PEFT_TYPE, MixtureConfig
from kshot.mixture.expert import linear_shape
from kshot.mixture.layer import MixtureLinear


class MixtureModel(BaseTuner):
    """Puts a `MixtureLinear` in place of every module that a `MixtureConfig` names.

    State-dict keys are `<module>.mixture_A.<adapter>` and so on; experts are stacked, their names no keys.
    Made with PEFT alone, `get_peft_model(base, MixtureConfig(...))`, the experts are fresh LoRAs that change
    nothing yet; `build_mixture` fills in trained ones.
    """

    prefix: str = "mixture_"
    tuner_layer_cls = MixtureLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's attribute; modules come from the config

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        """Refuse a config of another base before anything is changed.

        Raises:
            AdapterError: Names the first module that is missing or not linear.
        """
        module_names = _own(peft_config).module_names
        modules = dict(model.named_modules())
        strange = [
            name for name in module_names if name not in modules or linear_shape(modules[name]) is None
        ]
        if strange:
            raise AdapterError(
                f"the mixture belongs to another base: expected a linear layer {strange[0]}, got none; "
                f"{len(strange)} of {len(module_names)} modules are missing: load its own base"
            )

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


def _own(peft_config: PeftConfig) -> MixtureConfig:
    assert isinstance(peft_config, MixtureConfig)  # PEFT picks the tuner by the config's type
    return peft_config


# PEFT's tables are typed by its closed enum, and take any string (peft >= 0.21).
PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = MixtureConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = MixtureModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = MixtureModel.prefix  # type: ignore[index]
