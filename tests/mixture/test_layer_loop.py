"""The layers of a model against a loop in float64, and what must hold whatever the router does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn

from kshot.mixture import constant_gates, is_router_parameter
from kshot.mixture.model import mixture_layers

from .layers import INPUTS, loop, make_blocks


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, Any]:
    num_experts = draw(st.integers(1, 5))
    kinds = draw(st.sampled_from([("up",), ("down",), ("up", "down")]))
    some_ranks = st.lists(st.integers(0, 4), min_size=num_experts, max_size=num_experts).filter(any)
    null_expert = draw(st.booleans())
    num_choices = num_experts + null_expert
    top_k = draw(st.integers(1, num_choices))
    shared_r = draw(st.sampled_from([0, 3]))
    prior = st.lists(st.sampled_from([-1.0, 0.0, 0.7]), min_size=num_choices, max_size=num_choices)
    return {
        "ranks": {kind: draw(some_ranks) for kind in kinds},
        "scalings": [draw(st.sampled_from([1 / 3, 1.0, 2.5])) for _ in range(num_experts)],
        "top_k": top_k,
        "null_expert": null_expert,
        "router_scope": draw(st.sampled_from(["module", "layer"])),
        "router_granularity": draw(st.sampled_from(["token", "sequence"])),
        "router_start": draw(st.sampled_from(["random", "directions"])),
        "router_prior": draw(st.none() | prior),
        "router_temperature": 1.0 if top_k == 1 else draw(st.sampled_from([0.7, 1.0])),
        "shared_r": shared_r,
        "shared_alpha": draw(st.sampled_from([None, 2.0])) if shared_r else None,
    }


NO_LABEL = -100
MASK_BT = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
LABELS_BT = torch.tensor(
    [[NO_LABEL, NO_LABEL, NO_LABEL, 5], [NO_LABEL, 5, NO_LABEL, 5], [NO_LABEL, NO_LABEL, 5, NO_LABEL]]
)
PROMPT_BT = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]])


@given(mixtures(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_against_loop(mixture: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    model = make_blocks(**mixture)
    x_BTD = torch.randn(3, 4, INPUTS, dtype=torch.float64, requires_grad=True)
    leaves = [x_BTD, *(p for n, p in model.named_parameters() if "mixture" in n)]
    weight_BTD = torch.randn(3, 4, INPUTS, dtype=torch.float64)
    got = model(x_BTD, attention_mask=MASK_BT, labels=LABELS_BT)
    want = loop(model, x_BTD, PROMPT_BT)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    pairs = zip(
        torch.autograd.grad((got * weight_BTD).sum(), leaves, allow_unused=True, materialize_grads=True),
        torch.autograd.grad((want * weight_BTD).sum(), leaves, allow_unused=True, materialize_grads=True),
        strict=True,
    )
    for got_grad, want_grad in pairs:
        torch.testing.assert_close(got_grad, want_grad, rtol=1e-9, atol=1e-9)


ROUTERS = {
    "paper": {},
    "layer": {"router_scope": "layer"},
    "sequence": {"router_granularity": "sequence"},
    "directions": {"router_start": "directions", "router_prior": [0.0, 1.0, -1.0]},
    "all": {"router_scope": "layer", "router_granularity": "sequence", "router_start": "directions"},
}
routers = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)


def set_experts(model: PeftModel, experts: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
    """Replace each stack of 3 experts of rank 2, (3, ...), by what a function makes of it."""
    for layer in mixture_layers(model, "default").values():
        A, B = layer.mixture_A["default"].data, layer.mixture_B["default"].data
        A.copy_(experts(0, A.unflatten(0, (3, 2))).flatten(end_dim=1))
        B.copy_(experts(1, B.T.unflatten(0, (3, 2))).flatten(end_dim=1).T)


@routers
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_invariant_identical_experts_are_one_lora_whatever_the_router_says(
    router: dict[str, Any], top_k: int
) -> None:
    options = {"ranks": {"up": [2] * 3, "down": [2] * 3}, "scalings": [0.5] * 3, "top_k": top_k}
    model = make_blocks(**options, **router)
    set_experts(model, lambda _, stack: stack[:1].expand_as(stack))
    x = torch.randn(2, 4, INPUTS, dtype=torch.float64)
    gates = {name: [1.0, 0.0, 0.0] for name in mixture_layers(model, "default")}
    got = model(x)
    with constant_gates(model, gates):
        torch.testing.assert_close(got, model(x), rtol=0, atol=1e-12)
    for layer in mixture_layers(model, "default").values():
        for router_module in layer.mixture_router.values():
            nn.init.normal_(router_module.weight)
    torch.testing.assert_close(model(x), got, rtol=0, atol=1e-12)


@routers
@pytest.mark.parametrize("top_k", [1, 2])
def test_invariant_permuting_experts_with_their_rows_of_the_router(
    router: dict[str, Any], top_k: int
) -> None:
    options = {"ranks": {"up": [2] * 3, "down": [2] * 3}, "scalings": [0.5] * 3, "top_k": top_k}
    model = make_blocks(**options, **router)
    x = torch.randn(2, 4, INPUTS, dtype=torch.float64)
    want, order = model(x), [2, 0, 1]
    set_experts(model, lambda _, stack: stack[order])
    assert not torch.allclose(model(x), want)
    for layer in mixture_layers(model, "default").values():
        for router_module in layer.mixture_router.values():
            for parameter in router_module.parameters():
                parameter.data.copy_(parameter.data[order])
    torch.testing.assert_close(model(x), want, rtol=0, atol=1e-12)


@routers
def test_invariant_a_sure_router_is_that_expert(router: dict[str, Any]) -> None:
    model = make_blocks(
        ranks={"up": [2, 1, 3], "down": [1, 4, 0]},
        scalings=[0.5, 2.0, 1.0],
        top_k=2,
        **(router | {"router_prior": [0.0, 100.0, 0.0]}),
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "mixture_router" in name:
            parameter.data.copy_(torch.tensor([0.0, 1e3, 0.0]))
    x = torch.randn(2, 4, INPUTS, dtype=torch.float64)
    got = model(x)
    with constant_gates(model, {name: [0.0, 1.0, 0.0] for name in mixture_layers(model, "default")}):
        torch.testing.assert_close(got, model(x), rtol=0, atol=1e-12)


@routers
def test_invariant_zero_B_is_the_base(router: dict[str, Any]) -> None:  # noqa: N802 - the factor B
    model = make_blocks(ranks={"up": [2] * 3, "down": [2] * 3}, scalings=[0.5] * 3, top_k=2, **router)
    x = torch.randn(2, 4, INPUTS, dtype=torch.float64)
    set_experts(model, lambda side, stack: stack * (side == 0))
    with model.disable_adapter():
        base = model(x)
    assert torch.equal(model(x), base)


@pytest.mark.parametrize("rest", [{}, {"null_expert": True}])
def test_a_layer_has_one_router(rest: dict[str, Any]) -> None:
    ranks = {"up": [2, 1], "down": [1, 1]}
    by_module, by_layer = (
        make_blocks(ranks=ranks, scalings=[1.0, 1.0], top_k=1, router_scope=scope, **rest)
        for scope in ("module", "layer")
    )
    found = [
        {name for name, p in model.named_parameters() if is_router_parameter(name)}
        for model in (by_module, by_layer)
    ]
    assert len(found[0]) == 4
    prefix = "base_model.model.layers"
    assert found[1] == {f"{prefix}.{i}.up.mixture_router.default.weight" for i in (0, 1)}
