"""The losses of a router: their values, their gradients, and that padding is not counted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture import LoraExpert, build_mixture, router_loss
from kshot.mixture.router import Router
from kshot.mixture.router_loss import load_balancing_loss, z_loss

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
MODULES = {f"model.layers.{i}.self_attn.q_proj": (32, 32, 2, 1.0) for i in range(2)}
TWO_A_LAYER = MODULES | {f"model.layers.{i}.mlp.up_proj": (32, 48, 2, 1.0) for i in range(2)}
MakeMixture = Callable[..., nn.Module]


@pytest.fixture
def make_mixture(make_llama: MakeModel, random_expert: MakeExpert) -> MakeMixture:
    """In training mode, with three experts and a loud router, so that logits differ."""

    def make(modules: dict[str, Any] = MODULES, **options: Any) -> nn.Module:
        experts = {name: random_expert(name, modules, seed) for seed, name in enumerate("abc")}
        options = {"top_k": 2, "router_init_std": 1.0} | options
        return build_mixture(make_llama(), experts, **options).train()

    return make


@pytest.fixture
def model(make_llama: MakeModel, random_expert: MakeExpert) -> nn.Module:
    experts = {name: random_expert(name, MODULES, seed) for seed, name in enumerate("abc")}
    return build_mixture(make_llama(), experts, top_k=2, load_balancing=0.5).train()


def logits_of_routers(model: nn.Module) -> list[torch.Tensor]:
    """(tokens, choices) of each router that kept them."""
    routers = [module for module in model.modules() if isinstance(module, Router)]
    return [router.logits.detach().flatten(end_dim=-2) for router in routers if router.logits is not None]


def test_against_the_formula() -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    p = logits.softmax(-1).mean(0)
    want = 3 * (p[0] * 1 / 4 + p[1] * 2 / 4 + p[2] * 1 / 4)
    torch.testing.assert_close(load_balancing_loss(logits, 2), want)


def test_invariant_balanced_routing_costs_one() -> None:
    logits = torch.eye(4, dtype=torch.float64).mul(9)
    torch.testing.assert_close(load_balancing_loss(logits, 1), torch.tensor(1.0, dtype=torch.float64))
    assert load_balancing_loss(logits[:1].repeat(4, 1), 1) > 3.9


def test_z_loss_against_the_formula() -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0], [-1.0, 1.0, 2.0]], dtype=torch.float64)
    sums = [sum(torch.tensor(x).double().exp() for x in row).log() for row in logits.tolist()]
    torch.testing.assert_close(z_loss(logits), (sums[0] ** 2 + sums[1] ** 2) / 2)
    assert z_loss(torch.full((4, 2), -torch.tensor(2.0).log().item())) == pytest.approx(0, abs=1e-12)


OPTIONS = {
    "balancing": {"load_balancing": 0.5},
    "z": {"z_loss": 0.3},
    "both": {"load_balancing": 0.5, "z_loss": 0.3},
    "null": {"load_balancing": 0.5, "z_loss": 0.3, "null_expert": True},
}


@pytest.mark.parametrize("granularity", ["token", "sequence"])
@pytest.mark.parametrize("scope", ["module", "layer"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_is_the_mean_over_routers_of_both_losses(
    options: dict[str, Any], scope: str, granularity: str, make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture(TWO_A_LAYER, router_scope=scope, router_granularity=granularity, **options)
    model(input_ids=token_ids)
    logits = logits_of_routers(model)
    assert len(logits) == (2 if scope == "layer" else 4)  # one that a layer shares counts once
    assert all(len(one) == (18 if granularity == "token" else 2) for one in logits)
    want = [
        options.get("load_balancing", 0) * load_balancing_loss(one, 2)
        + options.get("z_loss", 0) * z_loss(one)
        for one in logits
    ]
    loss = router_loss(model)
    torch.testing.assert_close(loss.detach(), torch.stack(want).mean())
    loss.backward()
    routers = [p for name, p in model.named_parameters() if "mixture_router" in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)


def test_one_pass_pays_once(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture(z_loss=0.1)
    model(input_ids=token_ids)
    router_loss(model)
    assert logits_of_routers(model) == []  # let go
    with pytest.raises(ConfigError, match=r"expected a training pass"):
        router_loss(model)


def test_without_coefficients_nothing_is_kept(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture()
    model(input_ids=token_ids)
    assert logits_of_routers(model) == []
    with pytest.raises(ConfigError, match=r"with load_balancing or z_loss > 0, got none: set one of them"):
        router_loss(model)


def test_choices_hidden_by_dropout_are_in_the_loss(
    make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    losses = []
    for dropout in (0.0, 0.9):
        model = make_mixture({next(iter(MODULES)): (32, 32, 2, 1.0)}, z_loss=1.0, router_dropout=dropout)
        model(input_ids=token_ids)
        losses.append(router_loss(model).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scope", ["module", "layer"])
def test_a_sequences_decision_counts_whatever_is_padding(
    scope: str, make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture(router_granularity="sequence", router_scope=scope, load_balancing=0.5)
    mask = torch.ones_like(token_ids)
    mask[0, :3] = 0
    model(input_ids=token_ids, attention_mask=mask)
    want = torch.stack([0.5 * load_balancing_loss(one, 2) for one in logits_of_routers(model)]).mean()
    torch.testing.assert_close(router_loss(model, mask).detach(), want)


def test_float64_stays_float64(
    make_llama: MakeModel, random_expert: MakeExpert, token_ids: torch.Tensor
) -> None:
    experts = {name: random_expert(name, MODULES, seed) for seed, name in enumerate("ab")}
    for dtype, want in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        model = build_mixture(make_llama(dtype), experts, z_loss=0.1).train()
        model(input_ids=token_ids)
        loss = router_loss(model)
        assert loss.shape == ()
        assert loss.dtype == want


def test_trains_the_router(model: nn.Module, token_ids: torch.Tensor) -> None:
    model(input_ids=token_ids)
    loss = router_loss(model)
    loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if "mixture_router" in n]
    assert len(gradients) == 2
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients)
    assert 0.4 < loss.item() < 1.5


def test_invariant_padding_is_not_counted(model: nn.Module, token_ids: torch.Tensor) -> None:
    model(input_ids=token_ids)
    want = router_loss(model)
    padded = torch.cat(
        [token_ids, torch.full((2, 4), 5)], dim=1
    )  # on the right: earlier tokens are unchanged
    mask = torch.ones_like(padded)
    mask[:, -4:] = 0
    model(input_ids=padded)
    torch.testing.assert_close(router_loss(model, mask), want)
    model(input_ids=padded)
    assert not torch.allclose(router_loss(model), want)


def test_refuses_a_mask_of_another_batch(model: nn.Module, token_ids: torch.Tensor) -> None:
    model(input_ids=token_ids)
    with pytest.raises(
        ConfigError, match=r"attention_mask must have one entry a token the layer saw, 18, got"
    ):
        router_loss(model, torch.ones(2, 4))


def test_refuses_a_model_that_kept_nothing(model: nn.Module, token_ids: torch.Tensor) -> None:
    model(input_ids=token_ids)
    model.eval()(input_ids=token_ids)  # evaluation drops what the training pass kept
    with pytest.raises(
        ConfigError, match=r"expected a training pass of a mixture with load_balancing or z_loss > 0"
    ):
        router_loss(model)


def test_refuses_routing_without_gradient(model: nn.Module, token_ids: torch.Tensor) -> None:
    with torch.no_grad():
        model(input_ids=token_ids)
    with pytest.raises(ConfigError, match=r"got routing computed without one: with gradient checkpointing"):
        router_loss(model)


@pytest.mark.parametrize("options", [{}, {"router_scope": "layer"}, {"router_granularity": "sequence"}])
def test_with_gradient_checkpointing(
    options: dict[str, Any], make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    gradients = []
    labels = token_ids.clone()
    labels[:, :4] = -100
    for checkpoint in (False, True):
        model = make_mixture(TWO_A_LAYER, load_balancing=0.5, z_loss=0.1, **options)
        if checkpoint:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        loss = model(input_ids=token_ids, labels=labels).loss + router_loss(model)
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("mixture_router" in name for name in gradients[0])
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad)
