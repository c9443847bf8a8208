"""A stand-in for a base model: its linear layers alone, to put adapters on without touching the base.

O outputs   I inputs of a layer
"""

from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from kshot.mixture.expert import WEIGHT_DTYPES, is_transposed, linear_shape


@torch.no_grad()
def stand_in_for(base_model: nn.Module) -> nn.Module:
    """Return a new tree of modules with the linear layers of `base_model` under their own names.

    Weights share the base's memory, but no module and no parameter is the base's: what PEFT replaces, freezes
    or moves is the stand-in's. A weight that is stored otherwise (quantised, offloaded) is computed whenever
    it is read, and not kept. Adapters of the base are left out.
    """
    root = nn.Module()
    adapted: tuple[str, ...] = ()
    dtype = _activation_dtype(base_model)
    for name, module in base_model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted += (name,)
            module = module.get_base_layer()
        if name and linear_shape(module) is not None:
            _put(root, name, _linear_of(module, dtype))
    return root


def dense_weight(linear: nn.Module) -> torch.Tensor:
    """Return a layer's weight (O, I), whichever way it is stored."""
    weight = cast(torch.Tensor, linear.weight).detach()
    return weight.T if is_transposed(linear) else weight


def dense_linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, like: nn.Module) -> nn.Module:
    """Return a layer around these tensors, of the class of `like`: Linear or Conv1D."""
    outputs, inputs = weight_OI.shape
    layer: nn.Module
    with torch.device("meta"):  # without memory of its own
        if is_transposed(like):
            layer, weight = Conv1D(outputs, inputs), weight_OI.T  # type: ignore[no-untyped-call]
        else:
            layer, weight = nn.Linear(inputs, outputs), weight_OI
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    layer.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))
    return layer


class ReadOnDemand(nn.Linear):
    """A linear layer whose weight is asked of another layer's forward each time, one row an input."""

    def __init__(self, source: nn.Module, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        shape = linear_shape(source)
        assert shape is not None  # the caller took it for linear
        self.out_features, self.in_features = shape
        self._source = (source, dtype)  # in a tuple, so that the base's layer is no child of this one
        self.unused = nn.Parameter(torch.empty(0), requires_grad=False)  # DoRA asks for a first parameter
        bias_O = _stored(source, "bias")
        self.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """(O, I), in the dtype of the base's activations."""
        source, dtype = self._source
        devices = (tensor.device for tensor in (*source.parameters(), *source.buffers()))
        device = next((device for device in devices if device.type != "meta"), torch.device("cpu"))
        zero_1I = torch.zeros(1, self.in_features, device=device, dtype=dtype)
        eye_II = torch.eye(self.in_features, device=device, dtype=dtype)
        with torch.no_grad():
            return cast(torch.Tensor, source(eye_II) - source(zero_1I)).T.contiguous()


def _linear_of(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    weight = _stored(module, "weight")
    if weight is not None and is_transposed(module):
        weight = weight.T
    if weight is None or tuple(weight.shape) != linear_shape(module):
        return ReadOnDemand(module, dtype)
    return dense_linear(weight, _stored(module, "bias"), like=module)


def _stored(module: nn.Module, attribute: str) -> torch.Tensor | None:
    """Return a tensor that can be read as numbers."""
    tensor = getattr(module, attribute, None)
    readable = isinstance(tensor, torch.Tensor) and tensor.dtype in WEIGHT_DTYPES and not tensor.is_meta
    return tensor.detach() if readable else None  # type: ignore[union-attr]


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    *parents, last = name.split(".")
    for part in parents:
        if not isinstance(getattr(root, part, None), nn.Module):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, layer)


def _activation_dtype(base_model: nn.Module) -> torch.dtype:
    dtypes = (parameter.dtype for parameter in base_model.parameters())
    return next((dtype for dtype in dtypes if dtype in WEIGHT_DTYPES), torch.float32)
