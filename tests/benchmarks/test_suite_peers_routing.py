"""Peers that route, against what should come out; adapters differ in rank, scaling and modules."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from suite.peers import arrow, smear, xlora
from suite.peers.one_shape import check_plain_layers
from torch import nn

from kshot.batching import pad_left
from kshot.decoding import greedy_decode
from kshot.errors import AdapterError
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert, LoraFactors, read_lora
from kshot.prompts import TokenisedExample

from .peer_adapters import IDS_BT, delta, logits, mean_change, with_changes, write_adapters


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> dict[str, LoraExpert]:
    folder = write_adapters(tmp_path_factory.mktemp("adapters"), tiny_model_folder)
    return {name: read_lora(folder / name, name) for name in ("e0", "e1", "e2", "e3")}


def test_arrow_routes_by_leading_directions(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    base = logits(tiny_lm.model)
    model = arrow.route(tiny_lm.model, experts, tmp_path)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    found = logits(model)
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, base, atol=1e-3)


def test_arrow_of_one_expert_is_that_expert(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    alone = {"e2": experts["e2"]}
    want = logits(with_changes(tiny_lm.model, mean_change(alone.values())))
    torch.testing.assert_close(logits(arrow.route(tiny_lm.model, alone, tmp_path)), want, atol=1e-5, rtol=0)


def test_xlora_at_zero_weights_is_the_mean(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    want = logits(with_changes(tiny_lm.model, mean_change(experts.values())))
    model = xlora.scale(tiny_lm.model, experts, tmp_path)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained, "the classifier"
    assert all("internal_xlora_classifier" in name for name in trained)
    for parameter in model.base_model.internal_xlora_classifier.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)


def test_xlora_decodes_with_a_cache_as_without(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tiny_lm.model = xlora.scale(tiny_lm.model, experts, tmp_path)
    weight_EH = tiny_lm.model.base_model.internal_xlora_classifier.layers[-1].weight
    nn.init.normal_(weight_EH)  # scalings that change from token to token
    prompts = [torch.randint(5, 250, (length,)).tolist() for length in (4, 9, 6)]
    alone = [_decoded_without_cache(tiny_lm.model, ids) for ids in prompts]
    # an end token that one row reaches before the others, so that it leaves the batch
    end = alone[1][2]
    want = [ids[: ids.index(end)] if end in ids else ids for ids in alone]
    rows = [TokenisedExample(tuple(ids), len(ids)) for ids in prompts]
    batch = pad_left(rows, tiny_lm.pad_id, torch.device("cpu"))
    with torch.inference_mode():
        assert greedy_decode(tiny_lm.model, batch, end_ids=[end], max_new_tokens=8) == want
    assert len({len(ids) for ids in want}) > 1


@torch.inference_mode()
def _decoded_without_cache(model: nn.Module, ids: list[int]) -> list[int]:
    tokens_BT = torch.tensor([ids])
    for _ in range(8):
        next_B = logits(model, tokens_BT)[:, -1].argmax(dim=-1)
        tokens_BT = torch.cat([tokens_BT, next_B.unsqueeze(1)], dim=1)
    return tokens_BT[0, len(ids) :].tolist()


def test_smear_against_averaged_parameters(tiny_lm: LanguageModel, experts: dict[str, LoraExpert]) -> None:
    base, prompt_BT = copy.deepcopy(tiny_lm.model), IDS_BT[:1]
    model = smear.soften(tiny_lm.model, experts, seed=3)
    routers = {}
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("mixture_router.default.weight"):
            nn.init.normal_(parameter)
            module = name.removeprefix("base_model.model.").removesuffix(".mixture_router.default.weight")
            routers[module] = parameter.detach()

    def average(module: str) -> Callable[..., torch.Tensor]:
        changes = [expert.factors.get(module) for expert in experts.values()]
        weight_OI = base.get_submodule(module).weight

        def forward(_: nn.Module, inputs: tuple[torch.Tensor, ...], __: torch.Tensor) -> torch.Tensor:
            gates_N = (inputs[0][0].mean(dim=0) @ routers[module].T).softmax(dim=-1)
            merged_OI = weight_OI + sum(
                gate * delta(factors) for gate, factors in zip(gates_N, changes, strict=True) if factors
            )
            return inputs[0] @ merged_OI.T

        return forward

    for module in routers:
        base.get_submodule(module).register_forward_hook(average(module))
    torch.testing.assert_close(logits(model, prompt_BT), logits(base, prompt_BT), atol=1e-4, rtol=0)


def test_strangers_are_refused(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    stranger = LoraExpert(
        "s", None, {"model.layers.0.self_attn.q_proj": LoraFactors(torch.ones(1, 5), torch.ones(32, 1), 1.0)}
    )
    before = logits(tiny_lm.model)
    for build in (arrow.route, xlora.scale):
        with pytest.raises(AdapterError, match="trained on another base"):
            build(tiny_lm.model, {"s": stranger}, tmp_path)
    assert torch.equal(logits(tiny_lm.model), before)


def test_quantised_bases_are_refused() -> None:
    for model in (nn.Linear(2, 2), nn.ModuleList([Linear4bit()])):
        with pytest.raises(AdapterError, match="expected an unquantised base"):
            check_plain_layers(model)


class Linear4bit(nn.Module):
    """Named and made as PEFT's own."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.ModuleDict()
