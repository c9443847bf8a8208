"""Training through PEFT: gradient checkpointing, half precision, copies of a model in the midst of it."""

import copy
import io
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture import router_loss

from .architectures import (
    CASES,
    HALF_CASES,
    KINDS,
    labels,
    left_padded,
    logits_of,
    make_base,
    make_mixture,
    token_ids,
    train,
)

pytestmark = pytest.mark.slow

LOSSES = {"load_balancing": 0.1, "z_loss": 0.01}
kinds = pytest.mark.parametrize("kind", KINDS)


def batch(*, padded: bool = False) -> dict[str, torch.Tensor]:
    """Rows whose prompts have different lengths, padded on the left or not at all."""
    inputs = left_padded() if padded else {"input_ids": token_ids()}
    labels_BT = labels()
    labels_BT[:, :5] = -100
    return inputs | {"labels": labels_BT}


def gradients(model: nn.Module, inputs: dict[str, torch.Tensor], *, with_router_loss: bool = False) -> Any:
    model.train()
    loss = model(**inputs).loss
    if with_router_loss:
        loss = loss + router_loss(model, inputs.get("attention_mask"))
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    return found


def checkpointed(model: PeftModel, use_reentrant: bool) -> PeftModel:
    model.enable_input_require_grads()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": use_reentrant})
    return model


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_checkpointing_changes_no_gradient(architecture: str, kind: str, use_reentrant: bool) -> None:
    inputs = batch(padded=True)
    want = gradients(make_mixture(kind, make_base(architecture)), inputs)
    model = checkpointed(make_mixture(kind, make_base(architecture)), use_reentrant)
    for _ in range(2):
        got = gradients(model, inputs)
        assert got.keys() == want.keys()
        for name, gradient in want.items():
            assert gradient is not None, name
            torch.testing.assert_close(got[name], gradient, msg=name)
    assert all(want[name].any() for name in want if ".mixture_A." in name or ".mixture_B." in name)


@pytest.mark.parametrize("kind", ["module_token", "layer_token", "module_sequence", "layer_sequence"])
def test_checkpointing_changes_no_router_loss(kind: str) -> None:
    inputs = batch(padded=True)
    want = gradients(make_mixture(kind, **LOSSES), inputs, with_router_loss=True)
    model = checkpointed(make_mixture(kind, **LOSSES), use_reentrant=False)
    for _ in range(2):
        got = gradients(model, inputs, with_router_loss=True)
        for name, gradient in want.items():
            torch.testing.assert_close(got[name], gradient, msg=name)
    model = checkpointed(make_mixture(kind, **LOSSES), use_reentrant=True)
    with pytest.raises(ConfigError, match=r"gradient_checkpointing_kwargs=\{\"use_reentrant\": False\}"):
        gradients(model, inputs, with_router_loss=True)


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad=True"
)  # of a pass without gradients
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_passes_before_one_backward(use_reentrant: bool) -> None:
    """As in DPO: the pass that is run again may not be the last one seen, whose prompt a router remembers."""
    first, second = batch(), batch(padded=True)
    first["labels"][:, :7] = -100  # a longer prompt

    def two_passes(model: nn.Module) -> list[torch.Tensor | None]:
        (model(**first).loss + 2 * model(**second).loss).backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    want = two_passes(make_mixture("layer_token").train())
    got = two_passes(checkpointed(make_mixture("layer_token"), use_reentrant).train())
    torch.testing.assert_close(got, want)
    model = checkpointed(make_mixture("layer_sequence"), use_reentrant).train()
    with pytest.raises(ConfigError, match=r"expected a backward after each pass, got 2 passes before one"):
        two_passes(model)
    model.zero_grad()
    with torch.no_grad():
        model(**second)  # needs no backward
    got = gradients(model, first)
    torch.testing.assert_close(got, gradients(make_mixture("layer_sequence"), first))


@kinds
def test_a_copy_is_a_model_of_its_own(kind: str) -> None:
    model = make_mixture(kind, **({} if kind == "fixed" else LOSSES))
    model.train()
    model(**batch()).loss.backward()  # leaves what the pass kept in the routers
    twin = copy.deepcopy(model).eval()
    model.zero_grad()
    model.eval()
    inputs = left_padded()
    want = logits_of(model, **inputs)
    assert torch.equal(logits_of(twin, **inputs), want)
    train(twin)
    changed = logits_of(twin, **inputs)
    assert not torch.equal(changed, want)
    assert torch.equal(logits_of(model, **inputs), want)
    train(model)
    assert torch.equal(
        logits_of(model, **inputs), changed
    )  # the twin's layers share routers as the model's do
    unloaded = twin.unload()
    assert torch.equal(logits_of(unloaded, **inputs), logits_of(make_base(), **inputs))
    assert torch.equal(logits_of(model, **inputs), changed)


@kinds
def test_a_whole_model_is_pickled(kind: str) -> None:
    model = train(make_mixture(kind))
    logits_of(model, **left_padded())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(logits_of(loaded, **left_padded()), logits_of(model, **left_padded()))


@pytest.mark.parametrize(("kind", "dtype"), HALF_CASES)
def test_half_precision_trains(kind: str, dtype: torch.dtype) -> None:
    model = make_mixture(kind, make_base(dtype=dtype))
    loss = model(**batch()).loss.item()
    train(model, steps=3)
    assert model(**batch()).loss.item() < loss
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@kinds
def test_autocast_trains_as_float32_does(kind: str) -> None:
    want = gradients(make_mixture(kind), batch())
    model = make_mixture(kind).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    got, exact = (torch.cat([one[name].flatten() for name in want]) for one in (found, want))
    assert torch.nn.functional.cosine_similarity(got, exact, dim=0) > 0.9
