"""Slope and curvature against plain autograd, the loss along the line, and the Fisher information itself."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kshot.batching import label_logits, pad_left
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.experts.displaced import displaced, mean_change
from kshot.experts.loss_expansion import Expansion, expand_loss, foretell_changes
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


def gradients_of(lm: LanguageModel, modules: list[str] = MODULES, num_draws: int = 0) -> LossGradients:
    return loss_gradients(lm, rows_of(lm), modules, num_draws=num_draws)


def slopes(gradients: LossGradients, experts: list[LoraExpert]) -> dict[str, float]:
    return {name: one.slope for name, one in expand_loss(gradients, experts).items()}


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
        torch.testing.assert_close(found.by_module[module], gradient[None], rtol=1e-4, atol=1e-6)


def test_change_is_the_slope_of_the_loss_along_the_adapter(tiny_lm: LanguageModel) -> None:
    experts = [
        make_expert("ranks", 1),
        make_expert("part", 2, MODULES[1:3], r=5),
        make_expert("more", 3, r=1),
    ]
    changes = slopes(gradients_of(tiny_lm), experts)
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


def test_curvature_is_that_of_the_fisher_information(tiny_lm: LanguageModel) -> None:
    """Of one adapter, against the exact mean over all targets: `Σ_t w_t Var_y (∂ log p(y) / ∂ step)`."""
    expert, step = make_expert("some", 6), 1e-3
    found = expand_loss(gradients_of(tiny_lm, num_draws=400), [expert])["some"]
    base, exact = tiny_lm.model, 0.0
    for row in rows_of(tiny_lm):
        log_p = []
        for gate in (step, -step):
            tiny_lm.model = build_mixture(base, {"a": expert}, fixed_gates=[gate]).double().eval()
            batch = pad_left([row], tiny_lm.pad_id, tiny_lm.device)
            log_p.append(label_logits(tiny_lm.model, batch).detach().log_softmax(dim=1))
            tiny_lm.model = tiny_lm.model.unload().float()
        score_LV = (log_p[0] - log_p[1]) / (2 * step)
        p_LV = ((log_p[0] + log_p[1]) / 2).exp()
        exact += float((p_LV * score_LV**2).sum(dim=1).mean()) / len(SHOTS) / 2
    assert found.curvature == pytest.approx(exact, rel=0.3)  # 400 draws: a standard error of 7 %


def test_curvature_by_layer_adds_up_squares(tiny_lm: LanguageModel) -> None:
    gradients = gradients_of(tiny_lm, num_draws=3)
    whole = make_expert("whole", 7)
    parts = [
        LoraExpert(str(layer), None, {name: whole.factors[name] for name in MODULES if f".{layer}." in name})
        for layer in (0, 1)
    ]
    found = expand_loss(gradients, [whole, *parts])
    assert found["whole"].slope == pytest.approx(found["0"].slope + found["1"].slope, rel=1e-5)
    assert found["whole"].by_layer == pytest.approx(found["0"].curvature + found["1"].curvature, rel=1e-5)
    assert found["0"].curvature == pytest.approx(found["0"].by_layer, rel=1e-9)
    again = expand_loss(gradients_of(tiny_lm, num_draws=3), [whole])["whole"]
    assert again.curvature == pytest.approx(found["whole"].curvature, rel=1e-5)


def test_foretold_change_is_slope_and_scaled_curvature() -> None:
    found = foretell_changes(
        {"a": Expansion(-1.0, 0.4, 0.1), "b": Expansion(0.5, 0.3, 0.1), "c": Expansion(0.0, 0.0, 0.0)}
    )
    assert found == pytest.approx({"a": -0.65, "b": 0.85, "c": 0.0})
    assert foretell_changes({"a": Expansion(-1.0, 0.0, 0.0)}) == {"a": -1.0}


def test_displaced_base_is_that_with_the_mean_adapter(tiny_lm: LanguageModel) -> None:
    """Slopes there are those of the loss with all adapters on, each at its share."""
    experts = [make_expert("a", 1), make_expert("b", 2, MODULES[1:3], r=2)]
    base = tiny_lm.model
    before = float(mean_loss(tiny_lm).detach())
    tiny_lm.model = build_mixture(base, {one.name: one for one in experts}, fixed_gates=[0.25, 0.25]).eval()
    want = float(mean_loss(tiny_lm).detach())
    tiny_lm.model = tiny_lm.model.unload().requires_grad_()
    with displaced(tiny_lm.model, mean_change(experts, 0.5)):
        assert float(mean_loss(tiny_lm).detach()) == pytest.approx(want, rel=1e-5)
        there = gradients_of(tiny_lm)
        loss = mean_loss(tiny_lm)
        weights = dict(tiny_lm.model.named_parameters())
        (gradient,) = torch.autograd.grad(loss, [weights[f"{MODULES[0]}.weight"]])
    torch.testing.assert_close(there.by_module[MODULES[0]][0], gradient, rtol=1e-4, atol=1e-6)
    assert there.loss == pytest.approx(want, rel=1e-5)
    assert float(mean_loss(tiny_lm).detach()) == before


def test_invariant_under_blocks_and_factorisation(tiny_lm: LanguageModel) -> None:
    gradients = gradients_of(tiny_lm)
    expert = make_expert("as stored", 4)
    draw = torch.Generator().manual_seed(9)
    turned = {}
    for module, factor in expert.factors.items():
        R = torch.linalg.qr(torch.randn(factor.r, factor.r, generator=draw)).Q * 3
        turned[module] = LoraFactors(R @ factor.A_rI, factor.B_Or @ torch.linalg.inv(R), factor.scaling)
    experts = [expert, LoraExpert("turned", None, turned)]
    changes = slopes(gradients, experts)
    assert changes["turned"] == pytest.approx(changes["as stored"], rel=1e-4)
    alone = slopes(gradients, experts[:1]) | slopes(gradients, experts[1:])
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
    changes = slopes(gradients, [expert, *halves.values()])
    alone = {name: change for one in halves.values() for name, change in slopes(gradients, [one]).items()}
    assert changes == pytest.approx(alone | slopes(gradients, [expert]), rel=1e-5)


def test_refuses(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="at least 1 shot, got none"):
        loss_gradients(tiny_lm, [], MODULES)
    with pytest.raises(ConfigError, match=r"linear modules of the base, got model\.norm"):
        gradients_of(tiny_lm, ["model.norm"])
    gradients = gradients_of(tiny_lm, MODULES[:2])
    with pytest.raises(AdapterError, match=r"'far': expected an adapter of the 2 linear .* got .*layers\.1"):
        slopes(gradients, [make_expert("far", 1)])
    with pytest.raises(
        AdapterError, match=r"'wide' was trained on another base: expected 32x32 .* got 32x40"
    ):
        slopes(gradients, [make_expert("wide", 1, MODULES[:2], inputs=40)])


def test_refuses_a_base_that_overflows(tiny_lm: LanguageModel) -> None:
    with torch.no_grad():
        tiny_lm.model.get_output_embeddings().weight[0] = float("nan")
    with pytest.raises(ConfigError, match=r"finite loss of the base on the shots .* in float32"):
        gradients_of(tiny_lm)
