"""The load-balancing loss: its value, its gradient, and that padding is not counted."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture import LoraExpert, build_mixture, router_loss
from kshot.mixture.router_loss import load_balancing_loss

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
MODULES = {f"model.layers.{i}.self_attn.q_proj": (32, 32, 2, 1.0) for i in range(2)}


@pytest.fixture
def model(make_llama: MakeModel, random_expert: MakeExpert) -> nn.Module:
    experts = {name: random_expert(name, MODULES, seed) for seed, name in enumerate("abc")}
    return build_mixture(make_llama(), experts, top_k=2, load_balancing=0.5).train()


def test_against_the_formula() -> None:
    logits = torch.tensor([[3.0, 2.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    p = logits.softmax(-1).mean(0)
    want = 3 * (p[0] * 1 / 4 + p[1] * 2 / 4 + p[2] * 1 / 4)
    torch.testing.assert_close(load_balancing_loss(logits, 2), want)


def test_invariant_balanced_routing_costs_one() -> None:
    logits = torch.eye(4, dtype=torch.float64).mul(9)
    torch.testing.assert_close(load_balancing_loss(logits, 1), torch.tensor(1.0, dtype=torch.float64))
    assert load_balancing_loss(logits[:1].repeat(4, 1), 1) > 3.9


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
    with pytest.raises(ConfigError, match=r"expected a training pass of a mixture with load_balancing or z_loss > 0"):
        router_loss(model)


def test_refuses_routing_without_gradient(model: nn.Module, token_ids: torch.Tensor) -> None:
    with torch.no_grad():
        model(input_ids=token_ids)
    with pytest.raises(ConfigError, match=r"got routing computed without one: with gradient checkpointing"):
        router_loss(model)


def test_with_gradient_checkpointing(
    make_llama: MakeModel, random_expert: MakeExpert, token_ids: torch.Tensor
) -> None:
    experts = {name: random_expert(name, MODULES, seed) for seed, name in enumerate("abc")}
    gradients = []
    for checkpoint in (False, True):
        model = build_mixture(make_llama(), experts, top_k=2, load_balancing=0.5).train()
        if checkpoint:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        loss = model(input_ids=token_ids, labels=token_ids).loss + router_loss(model)
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad)
