"""PEFT's `adapter_names`: a mixture of its own, or none, for each row of a batch."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from kshot.errors import AdapterError, ConfigError

from .architectures import (
    ARCHITECTURES,
    KINDS,
    SEQUENCE_KINDS,
    left_padded,
    logits_of,
    make_base,
    make_mixture,
)

pytestmark = pytest.mark.slow

BASE = "__base__"
NAMES = ["default", BASE, "other", "default", "other"]
NEW_TOKENS = 5
PAIRS = [
    ("llama", "module_token", "layer_token"),
    ("llama", "layer_sequence", "module_sequence"),
    ("llama", "null_shared_prior", "layer_sequence"),
    ("llama", "fixed", "directions_top1"),
    *((architecture, "layer_token", "module_sequence") for architecture in ARCHITECTURES[1:]),
]
pairs = pytest.mark.parametrize(("architecture", "first", "second"), PAIRS)


def two_mixtures(architecture: str, first: str, second: str) -> PeftModel:
    model = make_mixture(first, make_base(architecture))
    return make_mixture(second, model, adapter_name="other", seed=2)


def alone(model: PeftModel, run: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `run` gives for the whole batch with one mixture, or without any."""
    found = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        found[name] = run(model, **batch)
    with model.disable_adapter():
        found[BASE] = run(model, **batch)
    model.set_adapter("default")
    assert not torch.equal(found["default"], found["other"])
    assert not torch.equal(found["default"], found[BASE])
    return found


def generate(model: PeftModel, **settings: Any) -> torch.Tensor:
    return model.generate(**{"max_new_tokens": NEW_TOKENS, "do_sample": False} | settings)


@pairs
def test_each_row_runs_as_with_its_mixture_alone(architecture: str, first: str, second: str) -> None:
    model, batch = two_mixtures(architecture, first, second), left_padded(rows=len(NAMES))
    want = alone(model, logits_of, batch)
    got = logits_of(model, **batch, adapter_names=NAMES)
    for row, name in enumerate(NAMES):
        torch.testing.assert_close(got[row], want[name][row], rtol=0, atol=1e-4)
    assert torch.equal(logits_of(model, **batch), want["default"])


@pairs
def test_each_row_is_continued_as_alone(architecture: str, first: str, second: str) -> None:
    model, batch = two_mixtures(architecture, first, second), left_padded(rows=len(NAMES))
    want = alone(model, generate, batch)
    got = generate(model, **batch, adapter_names=NAMES)
    if architecture == "llama":
        assert torch.equal(generate(model, **batch, adapter_names=NAMES, use_cache=False), got)
    for row, name in enumerate(NAMES):
        assert torch.equal(got[row], want[name][row]), (row, name)


@pairs
def test_beams(architecture: str, first: str, second: str) -> None:
    model, batch = two_mixtures(architecture, first, second), left_padded(rows=len(NAMES))
    settings = {"num_beams": 3, "num_return_sequences": 2}
    want = alone(model, lambda model, **batch: generate(model, **batch, **settings), batch)
    got = generate(model, **batch, **settings, adapter_names=NAMES)
    in_config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, **settings)
    assert torch.equal(model.generate(**batch, adapter_names=NAMES, generation_config=in_config), got)
    for row, name in enumerate(NAMES):
        assert torch.equal(got[2 * row : 2 * row + 2], want[name][2 * row : 2 * row + 2]), (row, name)


def test_several_samples_of_a_row() -> None:
    model, batch = two_mixtures("llama", "layer_sequence", "module_token"), left_padded(rows=len(NAMES))
    torch.manual_seed(1)
    got = model.generate(
        **batch, adapter_names=NAMES, do_sample=True, num_return_sequences=3, max_new_tokens=2
    )
    assert got.shape == (3 * len(NAMES), 11)
    first = logits_of(model, **batch, adapter_names=NAMES)[:, -1].topk(64).indices[:, 0]
    greedy = model.generate(
        **batch, adapter_names=NAMES, do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=1
    )
    assert torch.equal(greedy[:, -1], first.repeat_interleave(3))


@pytest.mark.parametrize("kind", KINDS)
def test_only_base_rows_or_only_one_mixture(kind: str) -> None:
    model, batch = make_mixture(kind), left_padded()
    base = logits_of(make_base(), **batch)
    assert torch.equal(logits_of(model, **batch, adapter_names=[BASE] * 3), base)
    own = logits_of(model, **batch, adapter_names=["default"] * 3)
    torch.testing.assert_close(own, logits_of(model, **batch), rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, **batch, adapter_names=["default"] * 3), base)


def test_half_precision_rows() -> None:
    model = make_mixture("layer_token", make_base(dtype=torch.bfloat16))
    mixed = logits_of(model, **left_padded(), adapter_names=["default", BASE, "default"])
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed[0], logits_of(model, **left_padded())[0], rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", SEQUENCE_KINDS)
def test_mixed_rows_go_on_from_a_cache(kind: str) -> None:
    """Turn by turn, with a row that leaves: each mixture remembers its own rows."""
    model = two_mixtures("llama", kind, "layer_sequence")
    batch, more = left_padded(rows=len(NAMES)), left_padded(rows=len(NAMES), tokens=2)["input_ids"]
    kept = torch.tensor([0, 2, 4])
    names = [NAMES[row] for row in kept.tolist()]
    with torch.no_grad():
        cache = model(**batch, adapter_names=NAMES, use_cache=True).past_key_values
        want = model(input_ids=more, past_key_values=cache, adapter_names=NAMES).logits
        cache = model(**batch, adapter_names=NAMES, use_cache=True).past_key_values
        cache.batch_select_indices(kept)
        model.select_rows(kept)
        got = model(input_ids=more[kept], past_key_values=cache, adapter_names=names).logits
        torch.testing.assert_close(got, want[kept], rtol=0, atol=1e-4)
        with pytest.raises(AdapterError, match="decides when it sees the prompt"):
            model(input_ids=more[kept], past_key_values=cache, adapter_names=names[::-1])


def test_mistakes() -> None:
    model, batch = two_mixtures("llama", "fixed", "module_token"), left_padded()
    calls = (
        lambda **settings: model(**settings),
        lambda **settings: model.generate(**settings, max_new_tokens=1),
    )
    for call in calls:
        with pytest.raises(
            ConfigError, match=r"expected adapter_names among .*'default', 'other'.* got \['x'\]"
        ):
            call(**batch, adapter_names=["default", "x", "other"])
        for names in (["default"], ["default"] * 2, ["other", "default"] * 3):
            with pytest.raises(
                ConfigError, match=rf"expected one of adapter_names a row, 3, got {len(names)}"
            ):
                call(**batch, adapter_names=names)
        with pytest.raises(ConfigError, match=r"expected adapter_names as a list, got 'default'"):
            call(**batch, adapter_names="default")
    model.merge_adapter()
    with pytest.raises(ConfigError, match="expected unmerged mixtures with adapter_names"):
        model(**batch, adapter_names=["default"] * 3)
    model.unmerge_adapter()
    model.train()
    with pytest.raises(
        ConfigError, match=r"expected evaluation mode with adapter_names.*call model\.eval\(\)"
    ):
        model(**batch, adapter_names=["default"] * 3)
    model.eval()
    want = logits_of(model, **batch)
    with pytest.raises(ConfigError, match="expected one of adapter_names a row"):
        model(**batch, adapter_names=[BASE])
    assert torch.equal(logits_of(model, **batch), want)  # nothing is left of a call that failed
