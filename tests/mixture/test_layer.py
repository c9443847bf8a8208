"""One layer: what must hold whatever the numbers are, its dtypes, its names."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from kshot.errors import AdapterError
from kshot.mixture import MixtureConfig, MixtureLinear, is_router_parameter
from kshot.mixture.layer import spread_of
from kshot.mixture.router import top_k_gates

from .layers import INPUTS, OUTPUTS, experts_of, make_layer


def test_invariant_one_hot_is_that_expert() -> None:
    layer = make_layer([1, 2, 4], [0.5, 1.0, 3.0], fixed_gates=[0.0, 0.0, 1.0])
    x = torch.randn(2, 6, INPUTS, dtype=torch.float64)
    A, B, scaling = experts_of(layer)[2]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scaling * x @ A.T @ B.T)
    assert "default" not in layer.mixture_router


@pytest.mark.parametrize("options", [{"top_k": 2}, {"fixed_gates": [0.5, 0.5, 0.5]}, {"shared_r": 2}])
def test_invariant_fresh_mixture_is_the_base(options: dict[str, Any]) -> None:
    layer = make_layer([1, 2, 4], dtype=torch.float32, random=False, **options)
    x = torch.randn(2, 6, INPUTS)
    assert torch.equal(layer(x), layer.base_layer(x))  # B is 0


def test_invariant_chosen_null_expert_is_the_base() -> None:
    layer = make_layer([2, 3], top_k=1, null_expert=True)
    x = torch.randn(5, INPUTS, dtype=torch.float64)
    with torch.no_grad():
        layer.mixture_router["default"].weight.zero_()
        layer.mixture_router["default"].weight[2] = 100 * x[0]
    chose_null = x @ x[0] > 0
    assert torch.equal(layer(x)[chose_null], layer.base_layer(x)[chose_null])
    assert not torch.equal(layer(x), layer.base_layer(x))


def test_invariant_two_active_mixtures_add_up() -> None:
    layer = make_layer([2, 3])
    layer.update_layer("other", make_layer([4], seed=5).mixture_config["default"], "proj")
    nn.init.normal_(layer.mixture_B["other"])
    x = torch.randn(5, INPUTS, dtype=torch.float64)
    base, changes = layer.base_layer(x), []
    for names in ("default", "other", ["default", "other"]):
        layer.set_adapter(names)
        changes.append(layer(x) - base)
    torch.testing.assert_close(changes[0] + changes[1], changes[2])


def test_invariant_start_depends_on_seed_and_module_alone() -> None:
    first, again, other = (make_layer([2, 3], random=False, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.mixture_router["default"].weight, again.mixture_router["default"].weight)
    assert not torch.equal(first.mixture_router["default"].weight, other.mixture_router["default"].weight)
    elsewhere = MixtureConfig(
        expert_names=["a", "b"],
        module_groups=[{"modules": ["proj2"], "ranks": [2, 3], "scalings": [1, 1]}],
        seed=1,
    )
    moved = MixtureLinear(nn.Linear(INPUTS, OUTPUTS), "default", elsewhere, "proj2")
    assert not torch.equal(
        first.mixture_router["default"].weight.float(), moved.mixture_router["default"].weight
    )


def test_routing_is_float32_under_bfloat16_and_autocast() -> None:
    layer = make_layer([2, 3], dtype=torch.bfloat16)
    assert layer.mixture_router["default"].weight.dtype == torch.float32
    assert layer.mixture_A["default"].dtype == torch.bfloat16
    x = torch.randn(64, INPUTS, dtype=torch.bfloat16)
    want = functional.linear(x.float(), layer.mixture_router["default"].weight)
    assert layer(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        gates = layer._gates_of_ranks("default", x, None)
    assert gates.dtype == torch.float32
    assert torch.equal(gates, top_k_gates(want, 2) @ layer.mixture_spread["default"])


def test_fixed_gates_are_float32_under_autocast() -> None:
    layer = make_layer([2, 3], [1 / 3, 1.0], dtype=torch.float32, fixed_gates=[0.1, 0.9])
    with torch.autocast("cpu", torch.bfloat16):
        gates = layer._gates_of_ranks("default", torch.randn(1, INPUTS), None)
    torch.testing.assert_close(gates, torch.tensor([0.1 / 3] * 2 + [0.9] * 3))


def test_moving_neither_casts_nor_unfreezes() -> None:
    layer = make_layer([2, 3], dtype=torch.bfloat16)
    layer.mixture_A["default"] = nn.Parameter(torch.randn(5, INPUTS), requires_grad=False)  # as if loaded
    layer._move_adapter_to_device_of_base_layer("default")
    assert layer.mixture_A["default"].dtype == torch.float32
    assert not layer.mixture_A["default"].requires_grad


@pytest.mark.parametrize("load_balancing", [0.0, 0.1])
def test_compiles_without_graph_breaks(load_balancing: float) -> None:
    layer = make_layer([2, 3], dtype=torch.float32, top_k=1, load_balancing=load_balancing, shared_r=2)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, INPUTS)
    torch.testing.assert_close(compiled(x), layer(x))


def test_only_linear_layers() -> None:
    config = make_layer([2]).mixture_config["default"]
    with pytest.raises(AdapterError, match=r"proj: expected a linear layer, got Embedding"):
        MixtureLinear(nn.Embedding(3, 4), "default", config, "proj")


def test_spread_has_an_empty_row_for_the_null_expert() -> None:
    want = torch.tensor([[0.5, 0, 0], [0, 0, 0], [0, 2, 2], [0, 0, 0]], dtype=torch.float64)
    assert torch.equal(spread_of([1, 0, 2], [0.5, 9.0, 2.0], 4), want)


def test_router_parameters_are_known_by_name() -> None:
    names = [name for name, _ in make_layer([2, 3], shared_r=2).named_parameters()]
    assert [name for name in names if is_router_parameter(name)] == ["mixture_router.default.weight"]
    assert is_router_parameter("base_model.model.lm_head.mixture_router.weight")
    assert {name.split(".")[0] for name in names} == {
        "base_layer", "mixture_A", "mixture_B", "mixture_router", "mixture_shared_A", "mixture_shared_B",
    }  # fmt: skip
