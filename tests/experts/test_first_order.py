"""First-order changes against plain autograd, and against the loss along the line."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kshot.batching import label_logits, pad_left
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.experts.first_order import first_order_changes
from kshot.experts.loss_gradients import LossGradients, loss_gradients
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert, LoraFactors, build_mixture
from kshot.prompts import TokenisedExample

MODULES = [f"model.layers.{layer}.self_attn.{side}_proj" for layer in (0, 1) for side in ("q", "v")]
SHOTS = [
    Example(instruction="What is the sum of two and three?", output="five", id="a"),
    Example(instruction="yes or no?", output="maybe no", rationale="The answer is no.", id="b"),
    Example(instruction="1 2 3", output="0", id="c"),
]


def make_expert(
    name: str, seed: int, modules: list[str] = MODULES, r: int = 3, inputs: int = 32
) -> LoraExpert:
    draw = torch.Generator().manual_seed(seed)
    factors = {
        module: LoraFactors(
            torch.randn(r, inputs, generator=draw),
            torch.randn(32 if "q_proj" in module else 16, r, generator=draw),
            0.5,
        )
        for module in modules
    }
    return LoraExpert(name, None, factors)


def rows_of(lm: LanguageModel) -> list[TokenisedExample]:
    return [lm.template.encode_example(shot, "instruction", rationale=True) for shot in SHOTS]


def gradients_of(lm: LanguageModel, modules: list[str] = MODULES) -> LossGradients:
    return loss_gradients(lm, rows_of(lm), modules)


def mean_loss(lm: LanguageModel) -> torch.Tensor:
    """Shot by shot: the mean over shots of the mean NLL of the target."""
    losses = []
    for row in rows_of(lm):
        batch = pad_left([row], lm.pad_id, lm.device)
        losses.append(cross_entropy(label_logits(lm.model, batch), batch.targets_L))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_against_autograd(tiny_lm: LanguageModel, tokens_per_batch: int) -> None:
    weights = dict(tiny_lm.model.named_parameters())
    frozen = [parameter for parameter in weights.values() if not parameter.requires_grad]
    found = loss_gradients(tiny_lm, rows_of(tiny_lm), MODULES, tokens_per_batch=tokens_per_batch)
    assert all(parameter.grad is None for parameter in weights.values())
    assert frozen == [parameter for parameter in weights.values() if not parameter.requires_grad]
    loss = mean_loss(tiny_lm)
    want = torch.autograd.grad(loss, [weights[f"{module}.weight"] for module in MODULES])
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for module, gradient in zip(MODULES, want, strict=True):
        torch.testing.assert_close(found.by_module[module], gradient, rtol=1e-4, atol=1e-6)


def test_change_is_the_slope_of_the_loss_along_the_adapter(tiny_lm: LanguageModel) -> None:
    experts = [
        make_expert("ranks", 1),
        make_expert("part", 2, MODULES[1:3], r=5),
        make_expert("more", 3, r=1),
    ]
    changes = first_order_changes(gradients_of(tiny_lm), experts)
    assert list(changes) == ["ranks", "part", "more"]
    base, step = tiny_lm.model, 1e-4
    for expert in experts:
        sides = []
        for gate in (step, -step):
            tiny_lm.model = build_mixture(base, {"a": expert}, fixed_gates=[gate]).double().eval()
            sides.append(float(mean_loss(tiny_lm).detach()))
            tiny_lm.model = tiny_lm.model.unload().float()
        slope = (sides[0] - sides[1]) / (2 * step)
        assert changes[expert.name] == pytest.approx(slope, rel=1e-3)


def test_invariant_under_blocks_and_factorisation(tiny_lm: LanguageModel) -> None:
    gradients = gradients_of(tiny_lm)
    expert = make_expert("as stored", 4)
    draw = torch.Generator().manual_seed(9)
    turned = {}
    for module, factor in expert.factors.items():
        R = torch.linalg.qr(torch.randn(factor.r, factor.r, generator=draw)).Q * 3
        turned[module] = LoraFactors(R @ factor.A_rI, factor.B_Or @ torch.linalg.inv(R), factor.scaling)
    experts = [expert, LoraExpert("turned", None, turned)]
    changes = first_order_changes(gradients, experts)
    assert changes["turned"] == pytest.approx(changes["as stored"], rel=1e-4)
    alone = first_order_changes(gradients, experts[:1]) | first_order_changes(gradients, experts[1:])
    assert alone == pytest.approx(changes, rel=1e-5)


def test_factors_of_mixed_precision_share_a_block(tiny_lm: LanguageModel) -> None:
    gradients = gradients_of(tiny_lm)
    expert = make_expert("exact", 5)
    halves = {
        dtype: LoraExpert(
            str(dtype),
            None,
            {
                module: LoraFactors(one.A_rI.to(dtype), one.B_Or.to(dtype), one.scaling)
                for module, one in expert.factors.items()
            },
        )
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
    }
    changes = first_order_changes(gradients, [expert, *halves.values()])
    alone = {
        name: change
        for one in halves.values()
        for name, change in first_order_changes(gradients, [one]).items()
    }
    assert changes == pytest.approx(alone | first_order_changes(gradients, [expert]), rel=1e-5)


def test_refuses(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="at least 1 shot, got none"):
        loss_gradients(tiny_lm, [], MODULES)
    with pytest.raises(ConfigError, match=r"linear modules of the base, got model\.norm"):
        gradients_of(tiny_lm, ["model.norm"])
    gradients = gradients_of(tiny_lm, MODULES[:2])
    with pytest.raises(AdapterError, match=r"'far': expected an adapter of the 2 linear .* got .*layers\.1"):
        first_order_changes(gradients, [make_expert("far", 1)])
    with pytest.raises(
        AdapterError, match=r"'wide' was trained on another base: expected 32x32 .* got 32x40"
    ):
        first_order_changes(gradients, [make_expert("wide", 1, MODULES[:2], inputs=40)])


def test_refuses_a_base_that_overflows(tiny_lm: LanguageModel) -> None:
    with torch.no_grad():
        tiny_lm.model.get_output_embeddings().weight[0] = float("nan")
    with pytest.raises(ConfigError, match=r"finite loss of the base on the shots .* in float32"):
        gradients_of(tiny_lm)
