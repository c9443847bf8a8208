"""The layer against a loop in float64, and what must hold whatever the numbers are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn import functional

from kshot.errors import AdapterError
from kshot.mixture import MixtureConfig, MixtureLinear, constant_gates, is_router_parameter
from kshot.mixture.layer import spread_of
from kshot.mixture.model import mixture_layers
from kshot.mixture.router import top_k_gates

INPUTS, HIDDEN, OUTPUTS = 7, 4, 5


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


def experts_of(layer: MixtureLinear, module: str = "proj") -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """(A, B, scaling) of each expert, cut out of the stack."""
    ranks, scalings = layer.mixture_config["default"].sizes(module)
    As = layer.mixture_A["default"].split(ranks)
    Bs = layer.mixture_B["default"].split(ranks, dim=1)
    return list(zip(As, Bs, scalings, strict=True))


class Block(nn.Module):
    """Two linear layers of one layer of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(INPUTS, HIDDEN, dtype=torch.float64)
        self.down = nn.Linear(HIDDEN, INPUTS, dtype=torch.float64)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.down(functional.softsign(self.up(x_BTD)))


class Blocks(nn.Module):
    """A model of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(
        self,
        x_BTD: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for layer in self.layers:
            x_BTD = x_BTD + layer(x_BTD)
        return x_BTD


def make_blocks(ranks: dict[str, list[int]], scalings: list[float], **options: Any) -> PeftModel:
    """A mixture in the modules of `ranks`, in both layers, all parts random."""
    groups = [
        {"modules": [f"layers.{i}.{kind}" for i in (0, 1)], "ranks": of_kind, "scalings": scalings}
        for kind, of_kind in ranks.items()
    ]
    config = MixtureConfig(
        expert_names=[f"expert {e}" for e in range(len(scalings))], module_groups=groups, **options
    )
    model = get_peft_model(Blocks(), config).eval()
    for name, parameter in model.named_parameters():
        if "mixture" in name:
            nn.init.normal_(parameter)
    return model


def loop(model: PeftModel, x_BTD: torch.Tensor, prompt_BT: torch.Tensor) -> torch.Tensor:
    """The formulas as written: row by row, token by token, expert by expert."""
    layers, config = mixture_layers(model, "default"), model.peft_config["default"]
    base = model.get_base_model()
    rows = []
    for x_TD, prompt_T in zip(x_BTD, prompt_BT, strict=True):
        for i in (0, 1):
            h_TD, lent = x_TD, None
            for kind in ("up", "down"):
                name = f"layers.{i}.{kind}"
                if name not in layers:
                    h_TD = getattr(base.layers[i], kind)(h_TD)
                else:
                    layer = layers[name]
                    if config.router_scope == "module" or lent is None:
                        lent = loop_gates(layer, h_TD, prompt_T)
                    h_TD = torch.stack([mixed(layer, x_D, g) for x_D, g in zip(h_TD, lent, strict=True)])
                h_TD = functional.softsign(h_TD) if kind == "up" else h_TD
            x_TD = x_TD + h_TD
        rows.append(x_TD)
    return torch.stack(rows)


def loop_gates(
    layer: MixtureLinear, x_TD: torch.Tensor, prompt_T: torch.Tensor
) -> list[dict[int, torch.Tensor]]:
    """The gate of each chosen expert, for each token."""
    config, router = layer.mixture_config["default"], layer.mixture_router["default"]
    if config.router_granularity == "sequence":
        read = [x_D for x_D, in_prompt in zip(x_TD, prompt_T, strict=True) if in_prompt]
        seen = [sum(read) / len(read) if read else torch.zeros_like(x_TD[0])] * len(x_TD)
    else:
        seen = list(x_TD)
    gates = []
    for x_D in seen:
        logits = [row_D @ x_D for row_D in router.weight]
        logits = [logit.abs() if config.router_start == "directions" else logit for logit in logits]
        if config.router_prior is not None:
            logits = [logit + prior for logit, prior in zip(logits, router.bias, strict=True)]
        logits = [logit / config.router_temperature for logit in logits]
        top = sorted(range(len(logits)), key=lambda e: -logits[e].item())[: config.top_k]
        total = sum(logits[e].exp() for e in top)
        gates.append({e: logits[e].exp() / total for e in top})
    return gates


def mixed(layer: MixtureLinear, x_D: torch.Tensor, gates: dict[int, torch.Tensor]) -> torch.Tensor:
    config = layer.mixture_config["default"]
    experts = experts_of(layer, layer.module_name)
    y_O = layer.base_layer.weight @ x_D + layer.base_layer.bias
    for e, gate in gates.items():
        if e < len(experts):  # else it is the null expert
            A, B, scaling = experts[e]
            y_O = y_O + gate * scaling * (B @ (A @ x_D))
    if config.shared_r:
        scaling = config.shared_alpha / config.shared_r if config.shared_alpha else 1
        shared_A, shared_B = layer.mixture_shared_A["default"], layer.mixture_shared_B["default"]
        y_O = y_O + scaling * (shared_B @ (shared_A @ x_D))
    return y_O


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
