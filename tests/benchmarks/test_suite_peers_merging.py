"""Peers that merge, against what should come out; adapters differ in rank, scaling and modules."""

import copy
from pathlib import Path

import pytest
import torch
from suite.peers import merging, uniform
from suite.peers.one_shape import write_one_shape

from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert, read_lora

from .peer_adapters import delta, logits, mean_change, with_changes, write_adapters


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> dict[str, LoraExpert]:
    folder = write_adapters(tmp_path_factory.mktemp("adapters"), tiny_model_folder)
    return {name: read_lora(folder / name, name) for name in ("e0", "e1", "e2", "e3")}


def test_against_the_mean_of_weight_changes(tiny_lm: LanguageModel, experts: dict[str, LoraExpert]) -> None:
    want = logits(with_changes(tiny_lm.model, mean_change(experts.values())))
    torch.testing.assert_close(logits(uniform.average(tiny_lm.model, experts)), want, atol=1e-5, rtol=0)


def test_one_shape_changes_no_weight(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    folders = write_one_shape(experts, tiny_lm.model, tmp_path / "one-shape")
    for expert, folder in zip(experts.values(), folders, strict=True):
        read = read_lora(folder)
        assert {factors.r for factors in read.factors.values()} == {4}
        assert len(read.factors) == 6, "three kinds of module in two layers"
        for module, factors in read.factors.items():
            own = expert.factors.get(module)
            want_OI = delta(own) if own else torch.zeros_like(delta(factors))
            torch.testing.assert_close(delta(factors), want_OI)


@pytest.mark.filterwarnings("ignore:The density 1.0 is greater")
@pytest.mark.parametrize("combination", ["ties_svd", "dare_ties_svd"])
@pytest.mark.parametrize("which", ["e0", "e2"])
def test_one_adapter_at_density_1_stays_itself(
    tiny_lm: LanguageModel,
    experts: dict[str, LoraExpert],
    tmp_path: Path,
    combination: merging.Combination,
    which: str,
) -> None:
    alone = {which: experts[which]}
    want = logits(with_changes(tiny_lm.model, mean_change(alone.values())))
    merged = merging.merge(tiny_lm.model, alone, tmp_path, combination, 1.0)
    torch.testing.assert_close(logits(merged), want, atol=1e-4, rtol=0)


def test_ties_against_its_three_steps(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    density, changes = 0.2, {}
    for module in {module for expert in experts.values() for module in expert.factors}:
        stacked = torch.stack(
            [
                delta(expert.factors[module])
                if module in expert.factors
                else torch.zeros_like(tiny_lm.model.get_submodule(module).weight)
                for expert in experts.values()
            ]
        )
        kept = int(density * stacked[0].numel())
        for one in stacked:
            one[one.abs() < one.abs().flatten().sort(descending=True).values[kept - 1]] = 0
        sign = torch.where(stacked.sum(dim=0) >= 0, 1, -1)
        agrees = stacked.sign() == sign
        changes[module] = (stacked * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)
    want = logits(with_changes(tiny_lm.model, changes))
    merged = merging.merge(tiny_lm.model, experts, tmp_path, "ties_svd", density)
    torch.testing.assert_close(logits(merged), want, atol=1e-4, rtol=0)


def test_dare_depends_on_its_seed_alone(
    tiny_lm: LanguageModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    def merged(seed: int) -> torch.Tensor:
        base = copy.deepcopy(tiny_lm.model)
        return logits(merging.merge(base, experts, tmp_path, "dare_ties_svd", 0.8, seed=seed))

    assert torch.equal(merged(1), merged(1))
    assert not torch.allclose(merged(1), merged(2))
