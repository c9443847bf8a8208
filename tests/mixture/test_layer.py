"""The layer against a loop in float64, and what must hold whatever the numbers are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from kshot.errors import AdapterError
from kshot.mixture import MixtureConfig, MixtureLinear, is_router_parameter
from kshot.mixture.layer import spread_of
from kshot.mixture.router import top_k_gates

INPUTS, OUTPUTS = 7, 5


def make_layer(
    ranks: list[int],
    scalings: list[float] | None = None,
    dtype: torch.dtype = torch.float64,
    random: bool = True,
    **options: Any,
) -> MixtureLinear:
    """A layer with random experts and router."""
    config = MixtureConfig(
        expert_names=[f"expert {e}" for e in range(len(ranks))],
        module_groups=[{"modules": ["proj"], "ranks": ranks, "scalings": scalings or [1.0] * len(ranks)}],
        **options,
    )
    layer = MixtureLinear(nn.Linear(INPUTS, OUTPUTS, dtype=dtype), "default", config, "proj")
    if random:
        for name, parameter in layer.named_parameters():
            if "mixture" in name:
                nn.init.normal_(parameter)
    return layer


def experts_of(layer: MixtureLinear) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """(A, B, scaling) of each expert, cut out of the stack."""
    ranks, scalings = layer.mixture_config["default"].sizes("proj")
    As = layer.mixture_A["default"].split(ranks)
    Bs = layer.mixture_B["default"].split(ranks, dim=1)
    return list(zip(As, Bs, scalings, strict=True))


def loop(layer: MixtureLinear, x_BTD: torch.Tensor) -> torch.Tensor:
    """The formula as written: token by token, expert by expert."""
    config, base = layer.mixture_config["default"], layer.base_layer
    experts, rows = experts_of(layer), []
    for x_D in x_BTD.flatten(end_dim=-2):
        y_O = base.weight @ x_D + base.bias
        logits_E = layer.mixture_router["default"].weight @ x_D / config.router_temperature
        top = logits_E.argsort(descending=True)[: config.top_k]
        for e, gate in zip(top.tolist(), logits_E[top].softmax(0), strict=True):
            if e < len(experts):  # else it is the null expert
                A, B, scaling = experts[e]
                y_O = y_O + gate * scaling * (B @ (A @ x_D))
        if config.shared_r:
            scaling = config.shared_alpha / config.shared_r if config.shared_alpha else 1
            shared_A, shared_B = layer.mixture_shared_A["default"], layer.mixture_shared_B["default"]
            y_O = y_O + scaling * (shared_B @ (shared_A @ x_D))
        rows.append(y_O)
    return torch.stack(rows).reshape(*x_BTD.shape[:-1], -1)


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    ranks = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any))
    null_expert = draw(st.booleans())
    top_k = draw(st.integers(1, len(ranks) + null_expert))
    shared_r = draw(st.sampled_from([0, 3]))
    return {
        "ranks": ranks,
        "scalings": draw(
            st.lists(st.sampled_from([1 / 3, 1.0, 2.5]), min_size=len(ranks), max_size=len(ranks))
        ),
        "top_k": top_k,
        "null_expert": null_expert,
        "router_temperature": 1.0 if top_k == 1 else draw(st.sampled_from([0.7, 1.0])),
        "shared_r": shared_r,
        "shared_alpha": draw(st.sampled_from([None, 2.0])) if shared_r else None,
    }


@given(mixtures(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_against_loop(mixture: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    layer = make_layer(**mixture)
    x_BTD = torch.randn(2, 3, INPUTS, dtype=torch.float64, requires_grad=True)
    leaves = [x_BTD, *(p for n, p in layer.named_parameters() if "mixture" in n)]
    weight_BTO = torch.randn(2, 3, OUTPUTS, dtype=torch.float64)
    got, want = layer(x_BTD), loop(layer, x_BTD)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    pairs = zip(
        torch.autograd.grad((got * weight_BTO).sum(), leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((want * weight_BTO).sum(), leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    )
    for got_grad, want_grad in pairs:
        torch.testing.assert_close(got_grad, want_grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_invariant_identical_experts_are_one_lora(top_k: int) -> None:
    layer = make_layer([2, 2, 2], [0.5] * 3, top_k=top_k)
    with torch.no_grad():
        layer.mixture_A["default"].copy_(layer.mixture_A["default"][:2].repeat(3, 1))
        layer.mixture_B["default"].copy_(layer.mixture_B["default"][:, :2].repeat(1, 3))
    x = torch.randn(4, INPUTS, dtype=torch.float64)
    A, B, scaling = experts_of(layer)[0]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + scaling * x @ A.T @ B.T)


def test_invariant_permuting_experts_with_router_rows_changes_nothing() -> None:
    layer = make_layer([1, 2, 4], [0.5, 1.0, 3.0], top_k=2)
    permuted = make_layer([4, 1, 2], [3.0, 0.5, 1.0], top_k=2)
    permuted.base_layer = layer.base_layer
    order = [2, 0, 1]
    with torch.no_grad():
        experts = [experts_of(layer)[e] for e in order]
        permuted.mixture_A["default"].copy_(torch.cat([A for A, _, _ in experts]))
        permuted.mixture_B["default"].copy_(torch.cat([B for _, B, _ in experts], dim=1))
        permuted.mixture_router["default"].weight.copy_(layer.mixture_router["default"].weight[order])
    x = torch.randn(2, 6, INPUTS, dtype=torch.float64)
    torch.testing.assert_close(permuted(x), layer(x), rtol=0, atol=1e-12)


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
    assert not torch.equal(first.mixture_router["default"].weight.float(), moved.mixture_router["default"].weight)


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


@pytest.mark.parametrize("safe_merge", [False, True])
def test_roundtrip_merge(safe_merge: bool) -> None:
    layer = make_layer([1, 2, 4], [0.5, 1.0, 3.0], fixed_gates=[0.2, -0.5, 1.0], shared_r=2, shared_alpha=6.0)
    x = torch.randn(2, 6, INPUTS, dtype=torch.float64)
    before, weight = layer(x), layer.base_layer.weight.clone()
    layer.merge(safe_merge=safe_merge)
    assert layer.merged
    torch.testing.assert_close(layer.base_layer(x), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.weight, weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_disabling_a_merged_layer_unmerges_it() -> None:
    layer = make_layer([2], fixed_gates=[1.0])
    x = torch.randn(3, INPUTS, dtype=torch.float64)
    weight = layer.base_layer.weight.clone()
    layer.merge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), functional.linear(x, weight, layer.base_layer.bias))


def test_merge_refuses_a_router() -> None:
    layer = make_layer([2, 3])
    with pytest.raises(AdapterError, match=r"expected fixed_gates, got the routed mixture 'default'"):
        layer.merge()
    assert not layer.supports_lora_conversion()


def test_merge_refuses_a_quantised_base() -> None:
    layer = make_layer([2], fixed_gates=[1.0])
    quantised = torch.zeros(OUTPUTS, INPUTS, dtype=torch.int8)
    layer.base_layer.weight = nn.Parameter(quantised, requires_grad=False)
    with pytest.raises(AdapterError, match=r"expected a floating-point base to merge into, got torch\.int8"):
        layer.merge()


def test_safe_merge_refuses_what_is_not_finite() -> None:
    layer = make_layer([2], fixed_gates=[1.0])
    layer.base_layer.weight.data[0, 0] = torch.inf
    with pytest.raises(
        AdapterError, match=r"expected finite weights after merging 'default', got NaN or inf"
    ):
        layer.merge(safe_merge=True)
    assert not layer.merged


def test_only_linear_layers() -> None:
    config = make_layer([2]).mixture_config["default"]
    with pytest.raises(AdapterError, match=r"proj: expected a linear layer, got Embedding"):
        MixtureLinear(nn.Embedding(3, 4), "default", config, "proj")


def test_top_k_gates_sum_to_one() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    want = torch.tensor([[0.0, 1 / (1 + torch.e**-1), 1 / (1 + torch.e)]])
    torch.testing.assert_close(top_k_gates(logits, 2), want)
    torch.testing.assert_close(top_k_gates(logits, 3), logits.softmax(-1))


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
