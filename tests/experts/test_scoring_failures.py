"""Scoring with adapters that cannot be scored, which stop no other."""

import pytest
from safetensors.torch import load_file, save_file

from kshot.bank import Bank
from kshot.bank.adapter import WEIGHTS, Adapter, describe, sha256_of
from kshot.errors import AdapterError
from kshot.experts import score_experts

from .banks import bank_of, change_weights, three_adapters
from .shots import SHOTS


@pytest.fixture
def bank(lora_folder) -> Bank:
    return three_adapters(lora_folder)


def test_failures_stop_no_other_adapter(tiny_lm, bank, lora_folder) -> None:
    expected = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    wider = change_weights(
        bank_of(lora_folder("wider"))["wider"], lambda key, value: value.repeat(1, 2) if "A" in key else value
    )
    huge = change_weights(bank_of(lora_folder("huge"))["huge"], lambda key, value: value * 1e30)
    torn, pickled, nan, changed = [
        bank_of(lora_folder(name))[name] for name in ("torn", "pickled", "nan", "changed")
    ]
    (torn.folder / WEIGHTS).write_bytes((torn.folder / WEIGHTS).read_bytes()[:-50])
    (pickled.folder / WEIGHTS).rename(pickled.folder / "adapter_model.bin")
    weights = load_file(nan.folder / WEIGHTS)
    save_file({key: value * float("nan") for key, value in weights.items()}, nan.folder / WEIGHTS)
    save_file({key: value * 2 for key, value in weights.items()}, changed.folder / WEIGHTS)
    bad = [wider, huge, torn, pickled, nan, changed]
    done = []
    scores = score_experts(tiny_lm, Bank([*bank, *bad]), SHOTS, max_new_tokens=4, progress=done.append)
    assert set(scores.failures) == {adapter.name for adapter in bad}
    assert "another base" in scores.failures["wider"]
    assert "got NaN or inf on a: its weights overflow in float32" in scores.failures["huge"]
    assert "sha256" in scores.failures["changed"]
    assert sum(done) == 9 * len(SHOTS)
    assert [score.name for score in scores] == [score.name for score in expected]
    for one, other in zip(scores, expected, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        assert one.shot_answer == other.shot_answer


def test_weights_that_are_nan_from_the_start_are_a_failure(tiny_lm, bank, lora_folder) -> None:
    folder = lora_folder("nan")
    entry = describe(folder, "nan")
    weights = load_file(folder / WEIGHTS)
    save_file({key: value * float("nan") for key, value in weights.items()}, folder / WEIGHTS)
    nan = Adapter(folder, entry.model_copy(update={"sha256": sha256_of(folder / WEIGHTS)}))
    scores = score_experts(tiny_lm, Bank([*bank, nan]), SHOTS, max_new_tokens=1)
    assert "expected finite weights" in scores.failures["nan"]
    assert len(scores) == 3


def test_where_no_adapter_can_be_scored_the_first_reason_is_given(tiny_lm, lora_folder) -> None:
    wider = change_weights(
        bank_of(lora_folder("wider"))["wider"], lambda key, value: value.repeat(1, 2) if "A" in key else value
    )
    with pytest.raises(AdapterError, match=r"at least one adapter.*got 1 that cannot; wider: .*another base"):
        score_experts(tiny_lm, Bank([wider]), SHOTS)
