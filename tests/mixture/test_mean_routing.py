"""Constant gates in place of a router: the mean routing of some text, and what it costs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from kshot.errors import ConfigError
from kshot.mixture import (
    LoraExpert,
    build_mixture,
    collect_routing,
    constant_gates,
    constant_gates_loss,
    mean_gates,
)
from kshot.mixture.model import mixture_layers

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
MakeMixture = Callable[..., PeftModel]
MODULES = {f"model.layers.{i}.self_attn.q_proj": (32, 32, 2, 2.0) for i in (0, 1)}
Q0 = "model.layers.0.self_attn.q_proj"
NO_LABEL = -100


@pytest.fixture
def experts(random_expert: MakeExpert) -> dict[str, LoraExpert]:
    return {name: random_expert(name, MODULES, seed) for seed, name in enumerate("abc")}


@pytest.fixture
def make_mixture(experts: dict[str, LoraExpert], make_llama: MakeModel) -> MakeMixture:
    def make(**options: Any) -> PeftModel:
        return build_mixture(make_llama(), experts, **({"top_k": 2, "router_init_std": 1.0} | options)).eval()

    return make


@pytest.fixture
def batches(token_ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The first left-padded; labels on the second alone."""
    mask = torch.ones_like(token_ids)
    mask[0, :4] = 0
    labels = token_ids.clone()
    labels[:, :6] = NO_LABEL
    return [
        {"input_ids": token_ids, "attention_mask": mask},
        {"input_ids": token_ids.flip(1), "labels": labels},
    ]


def by_module(gates: list[float]) -> dict[str, list[float]]:
    return dict.fromkeys(MODULES, gates)


def test_mean_gates_are_the_mean_over_real_tokens(
    make_mixture: MakeMixture, batches: list[dict[str, torch.Tensor]]
) -> None:
    model = make_mixture(null_expert=True)
    got = mean_gates(model, batches)
    assert set(got) == set(MODULES)
    with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
        model(**batches[0])
        model(input_ids=batches[1]["input_ids"])
    for module, gates in got.items():
        assert sum(gates) == pytest.approx(1, abs=1e-5)
        first, second = routing.modules[module].tokens
        real = batches[0]["attention_mask"].bool()
        want = torch.cat([first[real], second.flatten(end_dim=1)]).mean(dim=0)
        torch.testing.assert_close(torch.tensor(gates), want)


def test_mean_gates_of_a_router_by_sequence_are_those_of_prompts(
    make_mixture: MakeMixture, batches: list[dict[str, torch.Tensor]]
) -> None:
    model = make_mixture(router_granularity="sequence")
    labelled = batches[1]
    other = labelled["input_ids"].clone()
    other[:, 6:] = 9
    want = mean_gates(model, [labelled])
    assert mean_gates(model, [labelled | {"input_ids": other}]) == want
    assert mean_gates(model, [{"input_ids": labelled["input_ids"]}]) != want


def test_constant_gates_are_a_mixture_of_fixed_gates(
    make_mixture: MakeMixture, experts: dict[str, LoraExpert], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    gates = [0.2, 0.5, 0.3]
    model = make_mixture()
    fixed = build_mixture(make_llama(), experts, fixed_gates=gates)
    with torch.no_grad():
        before = model(input_ids=token_ids).logits
        with constant_gates(model, by_module(gates)):
            got = model(input_ids=token_ids).logits
        torch.testing.assert_close(got, fixed(input_ids=token_ids).logits, rtol=0, atol=1e-6)
        assert not torch.allclose(got, before, atol=1e-3)
        assert torch.equal(model(input_ids=token_ids).logits, before)


def test_constant_gates_by_module(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture(null_expert=True)
    gates = {module: [0.1 * place, 0.4, 0.0, 0.2] for place, module in enumerate(MODULES)}
    with torch.no_grad(), constant_gates(model, gates), collect_routing(model) as routing:
        model(input_ids=token_ids)
    for module, want in gates.items():
        assert routing.modules[module].mean_gates == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"fixed_gates": [0.5, 0.3, 0.2]}], ids=["routed", "fixed"])
def test_constant_gates_leave_what_was_there(
    options: dict[str, Any], experts: dict[str, LoraExpert], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    model = build_mixture(make_llama(), experts, **options).eval()

    def run_and_fail() -> None:
        with constant_gates(model, by_module([0.0, 0.0, 1.0])):
            model(input_ids=token_ids)
        raise ZeroDivisionError

    with torch.no_grad():
        before = model(input_ids=token_ids).logits
        with pytest.raises(ZeroDivisionError), constant_gates(model, by_module([0.0, 1.0, 0.0])):
            run_and_fail()
        assert torch.equal(model(input_ids=token_ids).logits, before)


WRONG = {
    "too few": (by_module([0.5, 0.5]), r"expected 3 gates for each of the 2 modules .* for model\.layers\.0"),
    "one module": (
        {Q0: [0.2, 0.2, 0.6]},
        r"got others for model\.layers\.1\.self_attn\.q_proj: take them from",
    ),
    "unknown": (by_module([0.2, 0.2, 0.6]) | {"lm_head": [1.0, 0.0, 0.0]}, r"got others for lm_head"),
}


@pytest.mark.parametrize(("gates", "message"), WRONG.values(), ids=WRONG)
def test_refuses_gates_of_others(
    gates: dict[str, list[float]], message: str, make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture()
    with pytest.raises(ConfigError, match=message), constant_gates(model, gates):
        pass
    with pytest.raises(ConfigError, match=message):
        constant_gates_loss(model, gates, [{"input_ids": token_ids}])
    assert not any("default" in layer.mixture_gates for layer in mixture_layers(model, "default").values())


def constant_router(model: PeftModel) -> dict[str, list[float]]:
    """Let the router hear its bias alone; return the gates that follow."""
    for layer in mixture_layers(model, "default").values():
        nn.init.zeros_(layer.mixture_router["default"].weight)
    return by_module([0.0, 1 / (1 + torch.e), torch.e / (1 + torch.e)])


PRIOR = {"a": -5.0, "b": 1.0, "c": 2.0}


@pytest.mark.parametrize("options", [{}, {"router_scope": "layer"}, {"router_granularity": "sequence"}])
def test_invariant_a_constant_router_loses_nothing(
    options: dict[str, Any], make_mixture: MakeMixture, batches: list[dict[str, torch.Tensor]]
) -> None:
    model = make_mixture(expert_scores=PRIOR, **options)
    want = constant_router(model)
    got = mean_gates(model, batches)
    for module, gates in got.items():
        assert gates == pytest.approx(want[module], abs=1e-6)
    loss = constant_gates_loss(model, got, batches)
    assert loss.num_tokens == 4 + 8 + 6  # labels where there are, else what follows a real token
    assert loss.kl == pytest.approx(0, abs=1e-6)
    assert loss.constant_nll == pytest.approx(loss.mixture_nll, abs=1e-6)
    assert loss.same_top == 1


@pytest.mark.parametrize("options", [{}, {"router_granularity": "sequence"}], ids=["token", "sequence"])
def test_loss_against_logits(
    options: dict[str, Any],
    make_mixture: MakeMixture,
    experts: dict[str, LoraExpert],
    make_llama: MakeModel,
    batches: list[dict[str, torch.Tensor]],
) -> None:
    gates = [1.0, 0.0, 0.0]
    model, fixed = make_mixture(**options), build_mixture(make_llama(), experts, fixed_gates=gates)
    for one in (model, fixed):
        one.get_base_model().lm_head.weight.data *= 30  # sure of itself, so that a divergence has a direction
    got = constant_gates_loss(model, by_module(gates), batches)
    targets, routed, constant = [], [], []
    for batch in batches:
        labels = batch.get("labels")
        if labels is None:
            real = batch["attention_mask"].bool()
            labels = batch["input_ids"].masked_fill(~real, NO_LABEL)
            labels[0, 4] = NO_LABEL  # padding is before it
        else:
            real = torch.ones_like(labels)
        where = labels[:, 1:] != NO_LABEL
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
        passed = inputs | ({"labels": labels} if "labels" in batch else {})
        with torch.no_grad():
            routed.append(model(**passed).logits[:, :-1][where])
            constant.append(fixed(**inputs).logits[:, :-1][where])
        targets.append(labels[:, 1:][where])
    target, logp, logq = torch.cat(targets), *(log_softmax(torch.cat(x), -1) for x in (routed, constant))
    assert got.num_tokens == len(target)
    assert got.mixture_nll == pytest.approx(cross_entropy(logp, target).item(), abs=1e-5)
    assert got.constant_nll == pytest.approx(cross_entropy(logq, target).item(), abs=1e-5)
    kl = kl_div(logq, logp, reduction="batchmean", log_target=True).item()
    assert kl > 1e-4
    assert got.kl == pytest.approx(kl, rel=1e-3)
    backwards = kl_div(logp, logq, reduction="batchmean", log_target=True).item()
    assert got.kl != pytest.approx(backwards, rel=1e-2)
    assert got.same_top == (logp.argmax(-1) == logq.argmax(-1)).double().mean().item()
    assert 0 < got.same_top < 1
    assert str(got).startswith(f"NLL {got.mixture_nll:.4f} -> {got.constant_nll:.4f} nats a token, KL ")


def test_batches_are_not_changed(make_mixture: MakeMixture, batches: list[dict[str, torch.Tensor]]) -> None:
    before = [{name: value.clone() for name, value in batch.items()} for batch in batches]
    model = make_mixture()
    constant_gates_loss(model, mean_gates(model, batches), batches)
    for batch, copy in zip(batches, before, strict=True):
        assert all(torch.equal(batch[name], value) for name, value in copy.items())


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_leaves_the_model_as_it_was(
    fails: bool, make_mixture: MakeMixture, batches: list[dict[str, torch.Tensor]]
) -> None:
    model = make_mixture(router_dropout=0.5).train()
    model.get_base_model().model.layers[0].eval()  # modes need not be alike
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        assert not any(module.training for module in model.modules())
        yield from batches
        if fails:
            raise ZeroDivisionError

    def measure() -> None:
        constant_gates_loss(model, by_module([0.2, 0.2, 0.6]), stream())

    if fails:
        with pytest.raises(ZeroDivisionError):
            measure()
        with pytest.raises(ZeroDivisionError):
            mean_gates(model, stream())
    else:
        measure()
        assert mean_gates(model, stream()) == mean_gates(model, batches)  # no dropout in it
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(layer.recorders for layer in mixture_layers(model, "default").values())


def test_refuses_too_little_text(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture()
    with pytest.raises(ConfigError, match=r"expected batches to take the mean routing over, got none"):
        mean_gates(model, [])
    gates = by_module([0.2, 0.2, 0.6])
    with pytest.raises(ConfigError, match=r"expected batches with tokens to predict, got none"):
        constant_gates_loss(model, gates, [{"input_ids": token_ids[:, :1]}])
    embedded = {"inputs_embeds": torch.randn(2, 3, 32)}
    with pytest.raises(ConfigError, match=r"batches with input_ids or labels, got \['inputs_embeds'\]"):
        constant_gates_loss(model, gates, [embedded])
    assert mean_gates(model, [embedded])


def test_refuses_a_mixture_that_is_not_active(
    make_mixture: MakeMixture, experts: dict[str, LoraExpert], batches: list[dict[str, torch.Tensor]]
) -> None:
    model = make_mixture()
    build_mixture(model, experts, adapter_name="other")
    with pytest.raises(
        ConfigError, match=r"expected the mixture 'other' to be active, .* model\.set_adapter"
    ):
        mean_gates(model, batches, "other")
    with pytest.raises(ConfigError, match=r"expected the mixture 'other' to be active"):
        constant_gates_loss(model, by_module([0.2, 0.2, 0.6]), batches, "other")
    with model.disable_adapter(), pytest.raises(ConfigError, match=r"'default' to be active"):
        mean_gates(model, batches)
    with pytest.raises(ConfigError, match=r"expected a mixture named 'x'"):
        mean_gates(model, batches, "x")
