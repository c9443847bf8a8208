"""A stand-in for a base model: its linear layers alone, so that adapters can be put on without touching the base.

O outputs   I inputs of a layer
"""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from kshot.mixture.expert import WEIGHT_DTYPES, is_transposed, linear_shape


@torch.no_grad()
def stand_in_for(base_model: nn.Module) -> nn.Module:
    """Return a new tree of modules with the linear layers of `base_model` under their own names.

    Weights share the base's memory, but no module and no parameter is the base's: what PEFT replaces, freezes
    or moves is the stand-in's. A weight that is stored otherwise (quantised, offloaded) is computed whenever it
    is read, and not kept. Adapters of the base are left out.
    """
    root = nn.Module()
    inside: tuple[str, ...] = ()
    dtype = _activation_dtype(base_model)
    for name, module in base_model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
            module = module.get_base_layer()  # noqa: PLW2901
        if linear_shape(module) is not None and name:
            _put(root, name, _linear_of(module, dtype))
    return root


def dense_weight(linear: nn.Module) -> torch.Tensor:
    """Return a layer's weight (O, I), whichever way it is stored."""
    weight: torch.Tensor = linear.weight  # type: ignore[assignment]
    return weight.detach().T if is_transposed(linear) else weight.detach()


def dense_linear(weight_OI: torch.Tensor, like: nn.Module) -> nn.Module:
    """Return a layer of the same class, Linear or Conv1D, and the same bias, with this weight."""
    bias = getattr(like, "bias", None)
    return _layer(weight_OI.T if is_transposed(like) else weight_OI, bias, transposed=is_transposed(like))


class ReadOnDemand(nn.Linear):
    """A linear layer whose weight is asked of another layer's forward each time, one column an input."""

    def __init__(self, source: nn.Module, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        shape = linear_shape(source)
        assert shape is not None  # the caller took it for linear
        self.out_features, self.in_features = shape
        self._source = (source, dtype)  # in a tuple, so that the base's layer is no child of this one
        bias = getattr(source, "bias", None)
        usable = isinstance(bias, torch.Tensor) and bias.dtype in WEIGHT_DTYPES and not bias.is_meta
        self.bias = nn.Parameter(bias.detach(), requires_grad=False) if usable else None  # type: ignore[union-attr]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """(O, I), in the dtype of the base's activations."""
        source, dtype = self._source
        device = next((tensor.device for tensor in (*source.parameters(), *source.buffers())), None)
        device = torch.device("cpu") if device is None or device.type == "meta" else device
        with torch.no_grad():
            zero_1I = torch.zeros(1, self.in_features, device=device, dtype=dtype)
            eye_II = torch.eye(self.in_features, device=device, dtype=dtype)
            return (source(eye_II) - source(zero_1I)).T.contiguous()


def _linear_of(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    weight = getattr(module, "weight", None)
    shape = linear_shape(module)
    stored = shape[::-1] if shape and is_transposed(module) else shape
    plain = isinstance(weight, torch.Tensor) and weight.dtype in WEIGHT_DTYPES and not weight.is_meta
    if not plain or tuple(weight.shape) != stored:  # type: ignore[union-attr]
        return ReadOnDemand(module, dtype)
    return _layer(weight.detach(), getattr(module, "bias", None), transposed=is_transposed(module))


def _layer(weight: torch.Tensor, bias: Any, *, transposed: bool) -> nn.Module:
    """Make a Linear or Conv1D around tensors, without memory of its own."""
    first, second = weight.shape
    if transposed:
        with torch.device("meta"):
            layer: nn.Module = Conv1D(second, first)
    else:
        layer = nn.Linear(second, first, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    *parents, last = name.split(".")
    for part in parents:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, layer)


def _activation_dtype(base_model: nn.Module) -> torch.dtype:
    dtypes = (parameter.dtype for parameter in base_model.parameters())
    return next((dtype for dtype in dtypes if dtype in WEIGHT_DTYPES), torch.float32)
