"""The router: gates, hidden choices, starts from the experts themselves or from scores."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import ArrowConfig, create_arrow_model
from safetensors.torch import save_file
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, LoraFactors, MixtureConfig, build_mixture, collect_routing, router_loss
from kshot.mixture.model import mixture_layers
from kshot.mixture.router import Router, hide_choices, leading_direction, top_k_gates
from kshot.mixture.routing import Routing

MakeModel = Callable[..., nn.Module]
MakeLora = Callable[..., Path]
MakeExpert = Callable[..., LoraExpert]
Q0, V0 = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def make_router(num_choices: int = 3, **options: Any) -> Router:
    group = {"modules": ["proj"], "ranks": [1] * num_choices, "scalings": [1.0] * num_choices}
    names = [f"expert {e}" for e in range(num_choices)]
    config = MixtureConfig(expert_names=names, module_groups=[group], **options)
    return Router(torch.randn(num_choices, 5), config, "proj").eval()


def test_against_the_formula_of_top_k_gates() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    want = torch.tensor([[0.0, 1 / (1 + torch.e**-1), 1 / (1 + torch.e)]])
    torch.testing.assert_close(top_k_gates(logits, 2), want)
    torch.testing.assert_close(top_k_gates(logits, 3), logits.softmax(-1))
    assert torch.equal(top_k_gates(logits, 1), torch.tensor([[0.0, 1.0, 0.0]]))


@given(st.integers(1, 6), st.data())
def test_invariant_gates_are_k_shares_of_one(num_choices: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_choices))
    gates = top_k_gates(torch.randn(4, 3, num_choices), k)
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(4, 3))
    assert ((gates > 0).sum(dim=-1) == k).all()


def test_temperature_and_bias_come_before_the_choice() -> None:
    router = make_router(top_k=2, router_temperature=0.5, router_prior=[0.0, 9.0, 9.5])
    with torch.no_grad():
        router.weight.zero_()
    gates = router(torch.randn(1, 4, 5), Routing())
    want = torch.tensor([0.0, 1 / (1 + torch.e), torch.e / (1 + torch.e)])
    torch.testing.assert_close(gates, want.expand(1, 4, 3))


def test_hides_nothing_at_probability_zero() -> None:
    logits = torch.randn(2, 3, 4)
    assert torch.equal(hide_choices(logits, 0.0), logits)


def test_a_token_from_which_all_would_be_hidden_keeps_all() -> None:
    logits = torch.randn(2, 3, 4)
    assert torch.equal(hide_choices(logits, 1.0), logits)


def test_a_hidden_choice_has_no_gate() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2000, 3, requires_grad=True)
    hidden = hide_choices(1e5 * logits, 0.5)  # however large the logits are
    gates = top_k_gates(hidden, 2)
    gone = hidden == -torch.inf
    assert (gates[gone] == 0).all()
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(2000))
    # of 8 patterns, the one that hides all hides none: (0.5 - 1/8) of the choices are hidden
    assert gone.float().mean().item() == pytest.approx(0.375, abs=0.03)
    gates.square().sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_router_dropout_is_for_training_alone() -> None:
    router, plain = make_router(top_k=3, router_dropout=0.5), make_router(top_k=3)
    plain.load_state_dict(router.state_dict())
    x = torch.randn(4, 8, 5)
    assert torch.equal(router(x, Routing()), plain(x, Routing()))
    assert (router.train()(x, Routing()) == 0).any()
    assert (plain.train()(x, Routing()) > 0).all()


SHAPES = {"wide": (9, 12, 3), "tall": (12, 5, 2), "rank over both": (4, 5, 8), "rank one": (6, 7, 1)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_leading_direction_against_svd(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    outputs, inputs, r = shape
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        A = torch.randn(r, inputs, generator=draw, dtype=torch.float64).to(dtype)
        B = torch.randn(outputs, r, generator=draw, dtype=torch.float64).to(dtype)
        got = leading_direction(A, B)
        dense = B.double() @ A.double()
        _, sizes, directions = torch.linalg.svd(dense)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got * torch.sign(got @ directions[0]), directions[0], rtol=0, atol=1e-9)
        torch.testing.assert_close((dense @ got).norm(), sizes[0], rtol=1e-12, atol=0)


def test_leading_direction_of_nothing_is_nothing() -> None:
    got = leading_direction(torch.randn(3, 7), torch.zeros(5, 3))
    assert torch.equal(got, torch.zeros(7, dtype=torch.float64))


def lora_with_a_clear_direction(seed: int, r: int = 4) -> LoraExpert:
    """One whose largest singular value stands out, so that Arrow's 15 power iterations reach it."""
    draw = torch.Generator().manual_seed(seed)

    def factors(outputs: int) -> LoraFactors:
        A, B = torch.randn(r, 32, generator=draw), 0.3 * torch.randn(outputs, r, generator=draw)
        A[0], B[:, 0] = 4 * A[0], 4 * B[:, 0]
        return LoraFactors(A, B, 2.0)

    sizes = {"q_proj": 32, "v_proj": 16}
    modules = {f"model.layers.{i}.self_attn.{kind}": factors(sizes[kind]) for i in (0, 1) for kind in sizes}
    return LoraExpert(f"expert {seed}", None, modules)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_directions_against_peft_arrow(
    temperature: float, make_llama: MakeModel, make_lora: MakeLora, token_ids: torch.Tensor
) -> None:
    experts = {f"e{seed}": lora_with_a_clear_direction(seed) for seed in (1, 2, 3)}
    folders = []
    for name, expert in experts.items():
        folders.append(make_lora(name))  # for its config: r = 4, scaling 2, q and v
        tensors = {}
        for module, factors in expert.factors.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = factors.A_rI
            tensors[f"base_model.model.{module}.lora_B.weight"] = factors.B_Or
        save_file(tensors, folders[-1] / "adapter_model.safetensors", metadata={"format": "pt"})
    arrow = create_arrow_model(
        make_llama(),
        [str(folder) for folder in folders],
        ArrowConfig(top_k=2, router_temperature=temperature, rng_seed=0),
    ).eval()
    ours = build_mixture(
        make_llama(), experts, top_k=2, router_start="directions", router_temperature=temperature
    ).eval()
    with torch.no_grad(), collect_routing(ours, keep_tokens=True) as routing:
        got, want = ours(input_ids=token_ids).logits, arrow(input_ids=token_ids).logits
        base = make_llama()(input_ids=token_ids).logits
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    assert not torch.allclose(got, base, atol=1e-2)
    assert all(0.05 < gate < 0.95 for gate in routing.modules[Q0].mean_gates)  # all three are used


def test_directions_against_the_formula(
    make_llama: MakeModel, random_expert: MakeExpert, token_ids: torch.Tensor
) -> None:
    """Ranks, scalings and modules that PEFT's Arrow refuses to mix."""
    experts = {
        "a": random_expert("a", {Q0: (32, 32, 2, 0.5), V0: (32, 16, 3, 1.0)}, seed=1),
        "b": random_expert("b", {Q0: (32, 32, 5, 2.0)}, seed=2),
        "c": random_expert("c", {Q0: (32, 32, 1, 1.0), V0: (32, 16, 40, 1.0)}, seed=3),
    }
    model = build_mixture(make_llama(), experts, top_k=2, router_start="directions", router_temperature=0.8)
    inputs = {}
    for name in (Q0, V0):
        layer = mixture_layers(model, "default")[name]
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
    with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
        model(input_ids=token_ids)
    for module, x_BTD in inputs.items():
        similarity = []
        for expert in experts.values():
            factors = expert.factors.get(module)
            if factors is None:
                similarity.append(torch.zeros(x_BTD.shape[:2], dtype=torch.float64))
                continue
            direction = torch.linalg.svd(factors.B_Or.double() @ factors.A_rI.double())[2][0]
            similarity.append((x_BTD.double() @ direction).abs())
        score_BTE = torch.stack(similarity, dim=-1) / 0.8
        kth = score_BTE.topk(2, dim=-1).values[..., -1:]
        want = score_BTE.masked_fill(score_BTE < kth, -torch.inf).softmax(dim=-1)
        torch.testing.assert_close(routing.modules[module].tokens[0].double(), want, rtol=0, atol=1e-5)


def test_directions_of_the_first_module_serve_its_layer(
    make_llama: MakeModel, random_expert: MakeExpert
) -> None:
    modules = {Q0: (32, 32, 2, 1.0), V0: (32, 16, 2, 1.0)}
    experts = {name: random_expert(name, modules, seed) for seed, name in enumerate("ab")}
    options = {"router_start": "directions", "router_scope": "layer", "null_expert": True}
    layers = mixture_layers(build_mixture(make_llama(), experts, **options), "default")
    assert "default" not in layers[V0].mixture_router
    weight = layers[Q0].mixture_router["default"].weight
    for row, expert in zip(weight, experts.values(), strict=False):
        factors = expert.factors[Q0]
        torch.testing.assert_close(row.double(), leading_direction(factors.A_rI, factors.B_Or))
    assert torch.equal(weight[2], torch.zeros(32))  # the null expert has no direction


SCORES = {"math": -1.0, "code/b.2": -4.0}


@pytest.mark.parametrize(
    ("null_expert", "want"), [(False, [1.5, -1.5]), (True, [2.0, -1.0, -1.0])], ids=["experts", "null"]
)
def test_scores_start_the_bias_in_the_order_of_the_stack(
    null_expert: bool, want: list[float], two_experts: dict[str, Path], make_llama: MakeModel
) -> None:
    scores = dict(reversed(SCORES.items()))
    model = build_mixture(make_llama(), two_experts, expert_scores=scores, null_expert=null_expert)
    assert model.peft_config["default"].router_prior == want
    layers = mixture_layers(model, "default").values()
    assert all(layer.mixture_router["default"].bias.tolist() == want for layer in layers)
    assert all(layer.mixture_router["default"].bias.requires_grad for layer in layers)


def test_without_scores_there_is_no_bias(two_experts: dict[str, Path], make_llama: MakeModel) -> None:
    model = build_mixture(make_llama(), two_experts)
    assert not any("mixture_router" in name and "bias" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"math": 1.0}, r"one score an expert, \['code/b.2', 'math'\], got \['math'\]"),
        (SCORES | {"poems": 0.0}, r"got \['code/b.2', 'math', 'poems'\]"),
        ({"math": 1.0, "Code": 2.0}, r"got \['Code', 'math'\]"),
        (SCORES | {"math": float("-inf")}, r"expert_scores must be finite, got \{'math': -inf"),
    ],
)
def test_refuses_scores_of_others(
    scores: dict[str, float], message: str, two_experts: dict[str, Path], make_llama: MakeModel
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_mixture(make_llama(), two_experts, expert_scores=scores)


class Backwards(nn.Module):
    """Uses its modules in another order than it defines them."""

    def __init__(self, *, fewer_tokens: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"one": nn.Linear(4, 4), "two": nn.Linear(4, 4)})])
        self.fewer_tokens = fewer_tokens

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        layer = self.layers[0]
        return (
            layer["two"](layer["one"](x_BTD)[:, 1:])
            if self.fewer_tokens
            else layer["one"](layer["two"](x_BTD))
        )


@pytest.mark.parametrize(
    ("fewer_tokens", "message"),
    [
        (False, r"expected layers\.0\.one, .* to run before layers\.0\.two .*, got nothing yet"),
        (True, r"on the same tokens, got gates of \(2, 3\): use router_scope=\"module\""),
    ],
)
def test_refuses_a_layer_whose_modules_cannot_share(
    fewer_tokens: bool, message: str, random_expert: MakeExpert
) -> None:
    modules = {f"layers.0.{name}": (4, 4, 2, 1.0) for name in ("one", "two")}
    experts = {name: random_expert(name, modules, seed) for seed, name in enumerate("ab")}
    x = torch.randn(2, 3, 4)
    model = build_mixture(Backwards(fewer_tokens=fewer_tokens), experts, router_scope="layer")
    with pytest.raises(AdapterError, match=message):
        model(x)
    model = build_mixture(Backwards(fewer_tokens=fewer_tokens), experts)
    assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize(
    "options", [{"z_loss": 0.1}, {"router_scope": "layer"}, {"router_granularity": "sequence"}]
)
def test_a_model_can_be_copied_after_a_pass(
    options: dict[str, Any], two_experts: dict[str, Path], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    model = build_mixture(make_llama(), two_experts, top_k=1, **options).train()
    model(input_ids=token_ids)
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        parameter.data += 0.1 * ("mixture_router" in name)
    mask = torch.ones_like(token_ids)
    with torch.no_grad(), collect_routing(copied) as own, collect_routing(model) as first:
        copied(input_ids=token_ids, attention_mask=mask)
    assert own.modules
    assert not first.modules  # the copy shares nothing with the model
    assert copied.base_model.routing.attention_BS is mask
    assert model.base_model.routing.attention_BS is None
    if "z_loss" in options:
        assert router_loss(model) > 0
