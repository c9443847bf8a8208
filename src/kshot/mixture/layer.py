"""One linear layer of the base with N LoRA experts beside it and a router that mixes them, token by token.

For a token's input x, with W the base's own layer:

    g = softmax(top-k of R x / temperature)        0 for the experts that are not among the k
    y = W x + sum over e of g_e s_e B_e A_e x      what is meant
      = W x + B ((A x) * (g S))                    what is computed: two matmuls whatever N is, no loop

A stacks the experts' A_e as rows and B their B_e as columns, so that experts of different ranks lie side by
side. S, constant, hands each expert's gate to its ranks and scales it: S[e, j] = s_e if row j of A belongs to
expert e, else 0. The null expert is a row of zeros in S; an expert without this module has no column in it.

Shapes: B batch   T tokens   D inputs   O outputs   E choices of the router (N experts, then the null expert)
        K experts a token uses   R ranks of all experts together
"""

import math
import warnings
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.nn.functional import linear

from kshot.errors import AdapterError
from kshot.mixture.config import MixtureConfig
from kshot.mixture.expert import WEIGHT_DTYPES, is_transposed, linear_shape
from kshot.mixture.router import Router, as_dtype
from kshot.mixture.routing import Routing
from kshot.mixture.row_adapters import RowAdapters

ROUTER = "mixture_router"
Recorder = Callable[[str, str, torch.Tensor, torch.Tensor | None], None]


class MixtureLinear(nn.Module, BaseTunerLayer):
    """A linear layer and, by adapter name, the mixtures that can be added to its output.

    By adapter name: `mixture_A` (R, D), `mixture_B` (O, R); `mixture_router`, a `Router`, in float32 on a
    half-precision base too, unless the gates are fixed or those of the layer's first module
    (`router_scope`); with `shared_r` `mixture_shared_A` and `mixture_shared_B`. Fresh ones depend on
    `config.seed` and the module's name alone. The base may be quantised: only its forward is called.

    Args:
        base_layer: Any layer with `in_features` and `out_features`, or GPT-2's Conv1D.
        adapter_name: Name of the first mixture.
        config: Its settings.
        module_name: This module's name in the base model, where `config` looks up ranks and scalings.

    Raises:
        AdapterError: `base_layer` is not linear.
    """

    adapter_layer_names = (
        "mixture_A", "mixture_B", ROUTER, "mixture_shared_A", "mixture_shared_B",
    )  # fmt: skip
    other_param_names = ("mixture_spread", "mixture_gates", "mixture_config", "lenders")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: MixtureConfig, module_name: str
    ) -> None:
        super().__init__()
        shape = linear_shape(base_layer)
        if shape is None:
            raise AdapterError(
                f"{module_name}: expected a linear layer, got {type(base_layer).__name__}: leave it out"
            )
        self.out_features, self.in_features = shape
        self.base_layer = base_layer
        self.module_name = module_name
        self.mixture_A = nn.ParameterDict()
        self.mixture_B = nn.ParameterDict()
        self.mixture_router = nn.ModuleDict()
        self.mixture_shared_A = nn.ParameterDict()
        self.mixture_shared_B = nn.ParameterDict()
        self.mixture_spread = BufferDict()  # S, (E, R)
        self.mixture_gates = BufferDict()  # (N,), only where they are fixed
        self.mixture_config: dict[str, MixtureConfig] = {}
        self.lenders: dict[str, Router] = {}  # that of the layer's first module, where it decides here too
        self.routing = Routing()
        self.recorders: list[Recorder] = []
        self.row_adapters: RowAdapters | None = None
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, module_name)

    def update_layer(self, adapter_name: str, config: MixtureConfig, module_name: str) -> None:
        """Add a mixture: experts that change nothing yet (A random, B zero), and its router if it has one."""
        device, dtype = self._base_device_and_dtype()
        dtype = dtype if dtype in WEIGHT_DTYPES else torch.float32  # a quantised base says nothing
        router_dtype = torch.promote_types(dtype, torch.float32)
        draw = torch.Generator().manual_seed(zlib.crc32(f"{config.seed} {module_name}".encode()))
        inputs, outputs = self.in_features, self.out_features
        std_A = 1 / math.sqrt(3 * inputs)  # that of PEFT's start for A

        self.mixture_config[adapter_name] = config
        ranks, scalings = config.sizes(module_name)
        spread_ER = spread_of(ranks, scalings, config.num_choices)
        self.mixture_spread[adapter_name] = spread_ER.to(device, router_dtype)
        self.mixture_A[adapter_name] = _fresh((sum(ranks), inputs), std_A, draw, dtype)
        self.mixture_B[adapter_name] = _fresh((outputs, sum(ranks)), 0, draw, dtype)
        if config.fixed_gates is not None:
            gates_N = torch.tensor(config.fixed_gates, dtype=torch.float64)
            self.mixture_gates[adapter_name] = gates_N.to(device, router_dtype)
        elif config.router_owner(module_name) == module_name:
            weight_ED = _drawn((config.num_choices, inputs), config.router_init_std, draw).to(router_dtype)
            self.mixture_router[adapter_name] = Router(weight_ED, config, module_name, adapter_name)
        if config.shared_r:
            self.mixture_shared_A[adapter_name] = _fresh((config.shared_r, inputs), std_A, draw, dtype)
            self.mixture_shared_B[adapter_name] = _fresh((outputs, config.shared_r), 0, draw, dtype)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x_BTD: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the base's output plus that of the active mixtures, in the base's dtype."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y_BTO: torch.Tensor = self.base_layer(x_BTD, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y_BTO
        dtype = y_BTO.dtype
        if self.row_adapters is not None:
            return as_dtype(self._add_by_row(y_BTO, x_BTD), dtype)
        for name in self.active_adapters:
            if name in self.mixture_A:
                y_BTO = self._add(name, y_BTO, x_BTD)
        return as_dtype(y_BTO, dtype)

    def _add_by_row(self, y_BTO: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        for name, rows in cast(RowAdapters, self.row_adapters).rows_in(x_BTD).items():
            if name in self.mixture_A:
                added_BTO = self._add(name, y_BTO[rows], x_BTD[rows], rows)
                y_BTO = y_BTO.index_copy(0, rows, added_BTO.to(y_BTO.dtype))
        return y_BTO

    def _add(
        self, name: str, y_BTO: torch.Tensor, x_BTD: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return y and what a mixture adds; `rows` are the places of x in the batch where it is a part."""
        A_RD, B_OR = self.mixture_A[name], self.mixture_B[name]
        gates_BTR = self._gates_of_ranks(name, x_BTD, rows)
        x_BTD = as_dtype(x_BTD, A_RD.dtype)
        h_BTR = linear(x_BTD, A_RD)
        y_BTO = _plus_product(y_BTO, h_BTR * as_dtype(gates_BTR, h_BTR.dtype), B_OR)
        if name in self.mixture_shared_A:
            h_BTr = linear(x_BTD, self.mixture_shared_A[name]) * self.shared_scaling(name)
            y_BTO = _plus_product(y_BTO, h_BTr, self.mixture_shared_B[name])
        return y_BTO

    def _gates_of_ranks(self, name: str, x_BTD: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Return g S: (B, T, R), (B, 1, R) from a decision on the whole prompt, (R,) from fixed gates."""
        device = x_BTD.device.type
        autocast = torch.is_autocast_enabled(device)  # half precision would flip close choices
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            gates_BTE = self._gates(name, x_BTD, rows)
            if self.recorders:
                mask_BT = self.routing.mask(x_BTD, rows)
                for record in self.recorders:
                    record(self.module_name, name, gates_BTE.expand(*x_BTD.shape[:-1], -1), mask_BT)
            spread_ER = cast(torch.Tensor, self.mixture_spread[name])
            return gates_BTE @ as_dtype(spread_ER, gates_BTE.dtype)

    def _gates(self, name: str, x_BTD: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        if name in self.mixture_gates:
            return cast(torch.Tensor, self.mixture_gates[name])
        if name in self.lenders:
            return self.lenders[name].lend(self.module_name, x_BTD)
        gates_BTE: torch.Tensor = self.mixture_router[name](x_BTD, self.routing, rows)
        return gates_BTE

    def shared_scaling(self, name: str) -> float:
        """What the shared expert of a mixture is multiplied with."""
        config = self.mixture_config[name]
        return 1.0 if config.shared_alpha is None else config.shared_alpha / config.shared_r

    def lora_factors(
        self, name: str, gates_N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mixture as one LoRA, for gates that no token changes, shared expert included.

        Args:
            name: Adapter name.
            gates_N: One gate an expert; the fixed gates if omitted.

        Returns:
            A (R, D) and B (O, R), detached, with gates and scalings inside B; the scaling left is 1.

        Raises:
            AdapterError: The mixture is routed and no gates are given.
        """
        if gates_N is None and name not in self.mixture_gates:
            raise AdapterError(
                f"expected fixed_gates, got the routed mixture {name!r}, which changes by token: "
                "keep it as it is, or export it by its mean routing over some text (`batches` of export_lora)"
            )
        spread_ER = self.mixture_spread[name]
        gates_N = self.mixture_gates[name] if gates_N is None else gates_N.to(spread_ER)
        A_RD, B_OR = self.mixture_A[name].detach(), self.mixture_B[name].detach()
        B_OR = (B_OR * (gates_N @ spread_ER[: len(gates_N)])).to(A_RD.dtype)
        if name in self.mixture_shared_A:
            A_RD = torch.cat([A_RD, self.mixture_shared_A[name].detach()])
            B_OR = torch.cat([B_OR, self.mixture_shared_B[name].detach() * self.shared_scaling(name)], dim=1)
        return A_RD, B_OR

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return the weight change, stored as the base's weight is; fixed gates only."""
        A_RD, B_OR = self.lora_factors(adapter)
        delta_OD = B_OR @ A_RD
        return delta_OD.T if is_transposed(self.get_base_layer()) else delta_OD

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the weight change of the active (or named) mixtures to the base's weight; fixed gates only.

        Args:
            safe_merge: Check the new weight first.
            adapter_names: Which mixtures; the active ones if omitted.

        Raises:
            AdapterError: A mixture is routed, the base is quantised, or (`safe_merge`) the sum is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.mixture_A]
        if not names:
            return
        base = self.get_base_layer()
        merged_weight = self._merged_weight(names, safe_merge)
        # a new parameter: an embedding tied to the old one must not change with it
        base.weight = nn.Parameter(merged_weight, requires_grad=cast(nn.Parameter, base.weight).requires_grad)
        self.merged_adapters += names

    def check_merge(self, safe_merge: bool, adapter_names: list[str] | None = None) -> None:
        """Raise what `merge` would raise, and change nothing."""
        names = self.active_adapters if adapter_names is None else adapter_names
        names = [name for name in names if name in self.mixture_A and name not in self.merged_adapters]
        if safe_merge:
            self._merged_weight(names, safe_merge)
        else:
            self._check_merge(names)

    def _check_merge(self, names: list[str]) -> None:
        for name in names:
            self.lora_factors(name)
        weight = cast(torch.Tensor, self.get_base_layer().weight)
        if names and (type(weight.data) is not torch.Tensor or not weight.dtype.is_floating_point):
            kind = weight.dtype if type(weight.data) is torch.Tensor else type(weight.data).__name__
            raise AdapterError(
                f"expected a floating-point base to merge into, got {kind}: load it unquantised"
            )

    def _merged_weight(self, names: list[str], safe_merge: bool) -> torch.Tensor:
        self._check_merge(names)
        merged = cast(torch.Tensor, self.get_base_layer().weight).data
        for name in names:
            merged = merged + self.get_delta_weight(name).to(merged.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise AdapterError(
                    f"expected finite weights after merging {name!r}, got NaN or inf: not merged"
                )
        return merged

    def unmerge(self) -> None:
        """Subtract again what `merge` added; equal to the old weight up to one rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        weight = cast(torch.Tensor, self.get_base_layer().weight)
        while self.merged_adapters:
            weight.data -= self.get_delta_weight(self.merged_adapters.pop()).to(weight.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Tell PEFT whether the mixture is one weight change."""
        return adapter_name in self.mixture_gates

    def _base_device_and_dtype(self) -> tuple[torch.device | None, torch.dtype | None]:
        device, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())  # type: ignore[no-untyped-call]
        return device, dtype

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move without the cast to the base's dtype that PEFT adds: it would round what was just loaded."""
        device = device or self._base_device_and_dtype()[0]
        if device is None:
            return
        for attribute in (*self.adapter_layer_names, "mixture_spread", "mixture_gates"):
            held = getattr(self, attribute)
            if adapter_name not in held:
                continue
            tensors = held[adapter_name].parameters() if attribute == ROUTER else [held[adapter_name]]
            for tensor in tensors:
                if not tensor.is_meta:
                    tensor.data = tensor.data.to(device)  # keeps requires_grad


def _plus_product(y_BTO: torch.Tensor, h_BTR: torch.Tensor, B_OR: torch.Tensor) -> torch.Tensor:
    """Return y + h Bᵀ, in one pass over the output where the dtypes agree: a twentieth of a training step."""
    if y_BTO.dtype == h_BTR.dtype == B_OR.dtype:
        flat = torch.addmm(y_BTO.flatten(end_dim=-2), h_BTR.flatten(end_dim=-2), B_OR.T)
        return flat.view(y_BTO.shape)
    return y_BTO + linear(h_BTR, B_OR)


def _fresh(shape: tuple[int, int], std: float, draw: torch.Generator, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(_drawn(shape, std, draw).to(dtype))


def _drawn(shape: tuple[int, int], std: float, draw: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=draw) * std if std else torch.zeros(shape)


def spread_of(ranks: list[int], scalings: list[float], num_choices: int) -> torch.Tensor:
    """Return S (E, R), float64: row e holds s_e at the ranks of expert e; a null expert's row is zero."""
    spread_ER = torch.zeros(num_choices, sum(ranks), dtype=torch.float64)
    start = 0
    for expert, (r, scaling) in enumerate(zip(ranks, scalings, strict=True)):
        spread_ER[expert, start : start + r] = scaling
        start += r
    return spread_ER


def is_router_parameter(name: str) -> bool:
    """Whether a parameter's name, from a model or a saved mixture, is that of a router."""
    return ROUTER in name.split(".")
