"""A bank in order: of what is sound, block by block, and again from what is stored."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kshot.bank import Bank
from kshot.bank.adapter import sha256_of
from kshot.bank.index import write_index
from kshot.errors import AdapterError, ConfigError, ExampleError
from kshot.examples import Example
from kshot.experts import ScoreStore, score_experts, screen_experts
from kshot.experts import screening as screening_module
from kshot.language_model import LanguageModel

SHOTS = [
    Example(instruction="What is the sum of two and three?", output="five", id="a"),
    Example(instruction="yes or no?", output="maybe no", rationale="The answer is no.", id="b"),
    Example(instruction="1 2 3", output="0", id="c"),
]
NAMES = ["aa", "bb", "cc", "dd", "ee", "ff"]


@pytest.fixture
def bank(tmp_path: Path, lora_folder) -> Bank:
    """Adapters so small that what is foretold is nearly exact, in ranks of 2 and 4."""
    (tmp_path / "bank").mkdir()
    for seed, name in enumerate(NAMES):
        lora_folder(name, seed=seed, r=2 + 2 * (seed % 2), std=0.01).rename(tmp_path / "bank" / name)
    return Bank.open(tmp_path / "bank")


def damage(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"no weights")


def change_weights(folder: Path, factor: float, *, width: int | None = None) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {key: tensor * factor for key, tensor in load_file(path).items()}
    if width:
        tensors = {key: one[:, :width] if "lora_A" in key else one for key, one in tensors.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def test_order_is_that_of_exact_scores_for_small_steps(tiny_lm: LanguageModel, bank: Bank) -> None:
    screening = screen_experts(tiny_lm, bank, SHOTS)
    exact = {score.name: score.mean_nll for score in score_experts(tiny_lm, bank, SHOTS, max_new_tokens=1)}
    assert list(screening.order) == sorted(exact, key=exact.__getitem__)
    changes = list(screening.changes.values())
    assert changes == sorted(changes)
    assert not screening.failures


def test_invariant_under_blocks(tiny_lm: LanguageModel, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = screen_experts(tiny_lm, bank, SHOTS)
    monkeypatch.setattr(screening_module, "RANKS_AT_ONCE", 5)
    counted: list[int] = []
    found = screen_experts(tiny_lm, bank, SHOTS, progress=counted.append)
    assert found.order == whole.order
    # The mean that slopes are taken half way to is that of fewer adapters.
    assert found.changes == pytest.approx(dict(whole.changes), rel=0.2)
    assert sum(counted) == len(NAMES)
    assert len(counted) > 3


def test_goes_on_from_what_is_stored(tiny_lm: LanguageModel, bank: Bank, tmp_path: Path) -> None:
    first = screen_experts(tiny_lm, bank, SHOTS, store=ScoreStore(tmp_path / "store"))
    lines = (tmp_path / "store").read_text()
    for adapter in bank:
        damage(adapter.folder)  # nothing is read again
    again = screen_experts(tiny_lm, bank, SHOTS, store=ScoreStore(tmp_path / "store"))
    assert again == first
    assert list(again.changes) == list(first.changes)
    assert (tmp_path / "store").read_text() == lines
    with pytest.raises(
        AdapterError, match="at least one adapter that can be screened, got 6 that cannot; aa"
    ):
        screen_experts(tiny_lm, bank, SHOTS[:2], store=ScoreStore(tmp_path / "store"))


def test_lists_what_cannot_be_screened_and_goes_on(
    tiny_lm: LanguageModel, tmp_path: Path, lora_folder, bank: Bank
) -> None:
    want = screen_experts(tiny_lm, bank.subset(["ee", "ff"]), SHOTS)
    change_weights(tmp_path / "bank" / "bb", float("nan"))
    change_weights(tmp_path / "bank" / "cc", 1e30)
    change_weights(tmp_path / "bank" / "dd", 1.0, width=24)
    # An index of what the files hold now, but for aa, whose file is damaged after it was written.
    sums = {adapter.name: sha256_of(adapter.folder / "adapter_model.safetensors") for adapter in bank}
    write_index(
        tmp_path / "bank",
        [adapter.entry.model_copy(update={"sha256": sums[adapter.name]}) for adapter in bank],
    )
    damage(tmp_path / "bank" / "aa")
    found = screen_experts(tiny_lm, Bank.open(tmp_path / "bank"), SHOTS)
    assert found.order == want.order
    assert list(found.failures) == ["aa", "bb", "cc", "dd"]
    assert "sha256" in found.failures["aa"]
    assert "NaN" in found.failures["bb"]
    assert "overflow" in found.failures["cc"]
    assert "another base" in found.failures["dd"]


def test_refuses(tiny_lm: LanguageModel, bank: Bank, lora_folder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one adapter to screen, got an empty bank"):
        screen_experts(tiny_lm, Bank([]), SHOTS)
    with pytest.raises(ExampleError, match="at least one shot, got none"):
        screen_experts(tiny_lm, bank, [])
    with pytest.raises(ConfigError, match="num_draws must be at least 0, got -1"):
        screen_experts(tiny_lm, bank, SHOTS, num_draws=-1)
    entry = bank["aa"].entry.model_copy(update={"target_modules": ("c_attn",)})
    write_index(tmp_path / "bank", [entry])
    with pytest.raises(AdapterError, match="linear modules of the base, got adapters of c_attn"):
        screen_experts(tiny_lm, Bank.open(tmp_path / "bank"), SHOTS)


def test_leaves_the_model_as_it_was(tiny_lm: LanguageModel, bank: Bank) -> None:
    before = {name: weight.clone() for name, weight in tiny_lm.model.named_parameters()}
    wanted = {name: weight.requires_grad for name, weight in tiny_lm.model.named_parameters()}
    screen_experts(tiny_lm, bank, SHOTS)
    for name, weight in tiny_lm.model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad == wanted[name]
        assert weight.grad is None
