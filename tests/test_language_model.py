"""Batched scoring and generation are those of one row at a time."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch.nn.functional import cross_entropy

from kshot.batching import label_logits, length_batches, pad_left, position_ids
from kshot.errors import ConfigError, SourceError
from kshot.language_model import LanguageModel
from kshot.prompts import TokenisedExample

PROMPTS = [
    "What is the sum of two and three?",
    "yes",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "no?",
]
TARGETS = ["five", "The answer is five, because two and three are five.", "z", "maybe"]


@pytest.fixture
def rows(tiny_lm: LanguageModel) -> list[TokenisedExample]:
    return [tiny_lm.template.encode(*pair) for pair in zip(PROMPTS, TARGETS, strict=True)]


@torch.inference_mode()
def plain_nll(lm: LanguageModel, row: TokenisedExample) -> np.ndarray:
    """One row, no padding, all logits."""
    logits_TV = lm.model(input_ids=torch.tensor([row.input_ids])).logits[0]
    labels = torch.tensor(row.labels)[1:]
    nll = cross_entropy(logits_TV[:-1], labels, reduction="none", ignore_index=-100)
    return nll[labels != -100].double().numpy()


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 4096])
def test_against_a_plain_loop(
    tiny_lm: LanguageModel, rows: list[TokenisedExample], tokens_per_batch: int
) -> None:
    tiny_lm.model.train()
    seen: list[int] = []
    found = tiny_lm.token_nll(rows, tokens_per_batch=tokens_per_batch, progress=seen.append)
    assert sum(seen) == len(rows)
    for row, values in zip(rows, found, strict=True):
        assert len(values) == row.target_length
        np.testing.assert_allclose(values, plain_nll(tiny_lm, row), atol=1e-5)


def test_against_a_plain_loop_with_an_adapter(
    tiny_lm: LanguageModel, rows: list[TokenisedExample], lora_folder: Callable[..., Path]
) -> None:
    base = tiny_lm.token_nll(rows)
    tiny_lm.model = PeftModel.from_pretrained(tiny_lm.model, lora_folder("a", std=0.5))
    for row, values, before in zip(rows, tiny_lm.token_nll(rows), base, strict=True):
        np.testing.assert_allclose(values, plain_nll(tiny_lm, row), atol=1e-5)
        assert np.abs(values - before).max() > 0.01


def test_invariant_padding_is_never_counted(tiny_lm: LanguageModel, rows: list[TokenisedExample]) -> None:
    alone = tiny_lm.token_nll(rows[1:2])[0]
    tiny_lm.pad_id = tiny_lm.template.encode_prompt("x")[0]
    np.testing.assert_allclose(tiny_lm.token_nll(rows)[1], alone, atol=1e-5)


def test_invariant_order_does_not_matter(tiny_lm: LanguageModel, rows: list[TokenisedExample]) -> None:
    forth, back = tiny_lm.token_nll(rows), tiny_lm.token_nll(rows[::-1])
    for one, other in zip(forth, back[::-1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert tiny_lm.token_nll([]) == []


def test_pad_left(rows: list[TokenisedExample]) -> None:
    short, long = TokenisedExample((5, 6, 7), 1), TokenisedExample((8, 9, 10, 11, 12), 4)
    batch = pad_left([short, long], 0, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]
    assert batch.attention_mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, -100, 6, 7], [-100, -100, -100, -100, 12]]
    assert batch.targets_L.tolist() == [6, 7, 12]
    assert batch.predicts_label.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert position_ids(batch.attention_mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_label_logits_leaves_no_hook(tiny_lm: LanguageModel, rows: list[TokenisedExample]) -> None:
    batch = pad_left(rows, tiny_lm.pad_id, tiny_lm.device)
    logits_LV = label_logits(tiny_lm.model, batch)
    assert logits_LV.shape[0] == sum(row.target_length for row in rows)
    assert tiny_lm.model(input_ids=batch.input_ids).logits.shape[:2] == batch.input_ids.shape


def one_by_one(lm: LanguageModel, prompt: str, max_new_tokens: int) -> str:
    """The likeliest token each time, without cache, padding or batch."""
    ids = lm.template.encode_prompt(prompt)
    start = len(ids)
    while len(ids) < start + max_new_tokens and (len(ids) == start or ids[-1] != lm.tokenizer.eos_token_id):
        with torch.inference_mode():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return str(lm.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_generation_against_one_by_one(tiny_lm: LanguageModel, batch_size: int) -> None:
    expected = [one_by_one(tiny_lm, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    seen: list[int] = []
    found = tiny_lm.generate(PROMPTS, max_new_tokens=12, batch_size=batch_size, progress=seen.append)
    assert found == expected
    assert sum(seen) == len(PROMPTS)


def test_generation_ignores_the_models_own_penalties(tiny_lm: LanguageModel) -> None:
    expected = tiny_lm.generate(PROMPTS, max_new_tokens=12)
    settings = tiny_lm.model.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = True, 0.6, 0.9, 20
    settings.repetition_penalty, settings.no_repeat_ngram_size, settings.num_beams = 5.0, 2, 3
    assert tiny_lm.generate(PROMPTS, max_new_tokens=12) == expected


def test_generation_stops_at_the_end_token(tiny_lm: LanguageModel) -> None:
    prompt = tiny_lm.template.encode_prompt(PROMPTS[0])
    ids = tiny_lm.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[
        0, len(prompt) :
    ].tolist()
    stop = next(token for token in ids if ids.index(token) >= 2)
    tiny_lm.model.generation_config.eos_token_id = [stop, tiny_lm.tokenizer.eos_token_id]
    alone, *_ = tiny_lm.generate(PROMPTS[:1], max_new_tokens=12)
    batched, *_ = tiny_lm.generate(PROMPTS, max_new_tokens=12)
    expected = tiny_lm.tokenizer.decode(ids[: ids.index(stop)], skip_special_tokens=True).strip()
    assert alone == batched == expected


def test_generation_cuts_at_an_end_of_several_tokens(tiny_lm: LanguageModel) -> None:
    full = tiny_lm.generate(PROMPTS[:1], max_new_tokens=12)[0]
    tiny_lm.template.end_of_turn = full[2:5]
    assert tiny_lm.generate(PROMPTS[:1], max_new_tokens=12)[0] == full.partition(full[2:5])[0].strip()


def test_nothing_to_generate(tiny_lm: LanguageModel) -> None:
    assert tiny_lm.generate([]) == []
    with pytest.raises(ConfigError, match="max_new_tokens must be at least 1, got 0"):
        tiny_lm.generate(PROMPTS, max_new_tokens=0)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got -1"):
        tiny_lm.generate(PROMPTS, batch_size=-1)


def test_load(tiny_model_folder: Path) -> None:
    lm = LanguageModel.load(
        tiny_model_folder.name, relative_to=tiny_model_folder.parent, dtype="bfloat16", device="cpu"
    )
    assert next(lm.model.parameters()).dtype == torch.bfloat16
    assert (lm.device.type, lm.max_length, lm.model.training) == ("cpu", 512, False)
    assert lm.tokenizer.convert_ids_to_tokens(lm.pad_id) == "<|endoftext|>"


def test_pad_id(tiny_lm: LanguageModel) -> None:
    tiny_lm.tokenizer.pad_token = None
    assert LanguageModel(tiny_lm.model, tiny_lm.tokenizer).pad_id == tiny_lm.tokenizer.eos_token_id
    tiny_lm.tokenizer.eos_token = None
    with pytest.raises(SourceError, match="expected a tokenizer with a padding or end token, got neither"):
        LanguageModel(tiny_lm.model, tiny_lm.tokenizer)


def test_load_mistakes(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected dtype float32, bfloat16, float16, got 'int8'"):
        LanguageModel.load(str(tiny_model_folder), dtype="int8")
    with pytest.raises(ConfigError, match="expected a device that torch can use, got 'abacus'"):
        LanguageModel.load(str(tiny_model_folder), device="abacus")
    with pytest.raises(SourceError, match="expected a causal language model with safetensors in "):
        LanguageModel.load(str(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "pickle"])
def test_unusable_weights_are_refused(tiny_model_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        torch.save({}, folder / "pytorch_model.bin")
        weights.unlink()
    with pytest.raises(SourceError, match="expected a causal language model with safetensors in "):
        LanguageModel.load(str(folder))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_invariant_length_batches(lengths: list[int], tokens_per_batch: int) -> None:
    batches = list(length_batches(lengths, tokens_per_batch))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= tokens_per_batch or len(batch) == 1
