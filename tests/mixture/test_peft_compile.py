"""torch.compile of a whole model with a mixture: one graph, the same numbers, forward and backward."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PeftModel

from kshot.mixture import router_loss

from .architectures import left_padded, make_base, make_experts, make_mixture

pytestmark = pytest.mark.slow

LOSSES = {"load_balancing": 0.1, "z_loss": 0.01}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small_mixture(kind: str, **options: Any) -> PeftModel:
    """Of one layer and three modules, which compiles faster."""
    base = make_base(num_hidden_layers=1)
    experts = make_experts(base, endings=("q_proj", "v_proj", "down_proj"))
    return make_mixture(kind, base, experts=experts, **options)


@pytest.mark.parametrize("kind", ["module_token", "layer_token", "layer_sequence"])
def test_evaluation_is_one_graph(kind: str) -> None:
    model = small_mixture(kind)
    with torch.no_grad():
        want = model(**left_padded()).logits
        got = torch.compile(model, fullgraph=True, backend="eager")(**left_padded()).logits
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("kind", "backend"), [("module_token", "eager"), ("layer_token", "aot_eager")])
def test_training_is_one_graph(kind: str, backend: str) -> None:
    inputs = left_padded()
    inputs["labels"] = inputs["input_ids"].clone()
    inputs["labels"][:, :5] = -100
    gradients = []
    for compiled in (False, True):
        model = small_mixture(kind, **LOSSES).train()
        run = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        loss = run(**inputs).loss + router_loss(model, inputs["attention_mask"])
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    torch.testing.assert_close(*gradients)
    assert all(gradient.any() for gradient in gradients[0])
