"""Generation through PEFT: cached as uncached, padded as alone, in beams, from embeddings, turn by turn."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import DynamicCache, GenerationConfig

from kshot.errors import AdapterError, ConfigError

from .architectures import (
    ARCHITECTURES,
    CASES,
    HALF_CASES,
    KINDS,
    SEQUENCE_KINDS,
    TOKEN_KINDS,
    left_padded,
    logits_of,
    make_base,
    make_experts,
    make_mixture,
    token_ids,
)

pytestmark = pytest.mark.slow

cases = pytest.mark.parametrize(("architecture", "kind"), CASES)
kinds = pytest.mark.parametrize("kind", KINDS)
sequence_kinds = pytest.mark.parametrize("kind", SEQUENCE_KINDS)
NEW_TOKENS = 6


def generate(model: nn.Module, **settings: Any) -> torch.Tensor:
    return model.generate(**{"max_new_tokens": NEW_TOKENS, "do_sample": False} | settings)


@cases
def test_cached_is_uncached(architecture: str, kind: str) -> None:
    model = make_mixture(kind, make_base(architecture))
    cached = generate(model, **left_padded())
    assert cached.shape == (3, 9 + NEW_TOKENS)
    assert torch.equal(generate(model, **left_padded(), use_cache=False), cached)
    with model.disable_adapter():
        assert not torch.equal(generate(model, **left_padded()), cached)


@cases
def test_a_row_of_a_padded_batch_is_the_row_alone(architecture: str, kind: str) -> None:
    model, batch = make_mixture(kind, make_base(architecture)), left_padded()
    together = generate(model, **batch)
    for row, mask_T in enumerate(batch["attention_mask"].bool()):
        alone = generate(model, input_ids=batch["input_ids"][row, mask_T].unsqueeze(0))
        assert torch.equal(together[row, 9:], alone[0, mask_T.sum() :]), row


@kinds
def test_beams(kind: str) -> None:
    model = make_mixture(kind)
    beams = generate(model, **left_padded(), num_beams=3, num_return_sequences=2)
    assert beams.shape == (6, 9 + NEW_TOKENS)
    assert torch.equal(
        generate(model, **left_padded(), num_beams=3, num_return_sequences=2, use_cache=False), beams
    )
    assert not torch.equal(beams[0::2], generate(model, **left_padded()))
    best = generate(model, **left_padded(), num_beams=3)
    assert torch.equal(best, beams[0::2])


@kinds
def test_generation_from_embeddings(kind: str) -> None:
    model, batch = make_mixture(kind), left_padded()
    want = generate(model, **batch)
    embeds_BTD = model.get_input_embeddings()(batch["input_ids"])
    got = generate(model, inputs_embeds=embeds_BTD, attention_mask=batch["attention_mask"])
    assert torch.equal(got, want[:, 9:])
    logits = logits_of(model, inputs_embeds=embeds_BTD, attention_mask=batch["attention_mask"])
    assert torch.equal(logits, logits_of(model, **batch))


def test_ids_may_come_by_position() -> None:
    model = make_mixture("layer_sequence")
    want = generate(model, input_ids=token_ids())
    assert torch.equal(model.generate(token_ids(), max_new_tokens=NEW_TOKENS), want)
    assert torch.equal(logits_of(model, input_ids=token_ids()), model(token_ids()).logits)


@pytest.mark.parametrize(("kind", "dtype"), HALF_CASES)
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    for model in (make_mixture(kind, make_base(dtype=dtype)), make_mixture(kind).to(dtype)):
        tokens = generate(model, **left_padded())
        assert tokens.shape == (3, 9 + NEW_TOKENS)
        assert logits_of(model).dtype == dtype


@sequence_kinds
def test_without_a_task_type(kind: str) -> None:
    """PEFT then wraps the model in a class that calls the base by another way."""
    model = make_mixture(kind)
    config = replace(model.peft_config["default"], task_type=None)
    plain = get_peft_model(make_base(), config).eval()
    plain.load_state_dict(model.state_dict())
    want = generate(model, **left_padded())
    assert type(plain) is PeftModel
    for use_cache in (True, False):
        assert torch.equal(generate(plain, **left_padded(), use_cache=use_cache), want)


def test_a_mixture_on_the_head() -> None:
    base = make_base()
    model = make_mixture("module_token", base, experts=make_experts(base, head=True))
    cached = generate(model, **left_padded())
    assert torch.equal(generate(model, **left_padded(), use_cache=False), cached)
    model = make_mixture("module_sequence", make_base(), experts=make_experts(make_base(), head=True))
    with pytest.raises(ConfigError, match="leave lm_head out of such a mixture"):
        generate(model, **left_padded())


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_a_static_cache(kind: str) -> None:
    model = make_mixture(kind)
    settings = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(generate(model, **left_padded(), **settings), generate(model, **left_padded()))


@kinds
def test_a_prompt_in_chunks(kind: str) -> None:
    model, want = make_mixture(kind), generate(make_mixture(kind), **left_padded())
    in_config = GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=0, prefill_chunk_size=4)
    for settings in ({"prefill_chunk_size": 4}, {"generation_config": in_config}):
        if kind in SEQUENCE_KINDS:
            with pytest.raises(ConfigError, match=r"expected the prompt in one pass.*got prefill_chunk_size"):
                generate(model, **left_padded(), **settings)
        else:
            assert torch.equal(generate(model, **left_padded(), **settings), want)


@sequence_kinds
def test_a_static_cache_hides_the_padding(kind: str) -> None:
    with pytest.raises(ConfigError, match="no static cache to generate"):
        generate(make_mixture(kind), **left_padded(), cache_implementation="static", disable_compile=True)


@kinds
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_going_on_from_a_cache_is_one_pass(kind: str, architecture: str) -> None:
    """Turn by turn, as a loop of one's own does it: the prompt in one pass, the rest in two more."""
    model, batch = make_mixture(kind, make_base(architecture)), left_padded()
    prompt_BT = batch["attention_mask"].clone()
    prompt_BT[:, 6:] = 0
    with model.base_model.route_by_prompt(prompt_BT):
        want = logits_of(model, **batch, **positions(batch["attention_mask"]))
    cache, got = None, []
    for start, end in ((0, 6), (6, 8), (8, 9)):
        inputs = {
            "input_ids": batch["input_ids"][:, start:end],
            "attention_mask": batch["attention_mask"][:, :end],
            "position_ids": positions(batch["attention_mask"])["position_ids"][:, start:end],
            "past_key_values": cache,
        }
        with torch.no_grad():
            output = model(**inputs, use_cache=True)
        cache = output.past_key_values
        got.append(output.logits)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(torch.cat(got, dim=1)[real], want[real], rtol=0, atol=1e-4)


def positions(mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"position_ids": (mask_BT.cumsum(dim=1) - 1).clamp(min=0)}


@sequence_kinds
@pytest.mark.parametrize("given", [False, True])
def test_conversations_in_turns_do_not_mix(kind: str, given: bool) -> None:
    """Prompt A, prompt B, then on with A: A's own decision counts, not that on the last prompt."""
    model = make_mixture(kind)
    prompts = [token_ids(2, 5), token_ids(2, 7).flip(0)]
    more = token_ids(2, 2)

    def begin(prompt_BT: torch.Tensor) -> Any:
        cache = DynamicCache(config=model.config) if given else None
        return model(input_ids=prompt_BT, use_cache=True, past_key_values=cache).past_key_values

    with torch.no_grad():
        want = [model(input_ids=more, past_key_values=begin(prompt)).logits for prompt in prompts]
        caches = [begin(prompt) for prompt in prompts]
        branch = copy.deepcopy(caches[0])
        got = [model(input_ids=more, past_key_values=cache).logits for cache in caches]
        assert torch.equal(model(input_ids=more, past_key_values=branch).logits, want[0])
    assert not torch.equal(*want)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@sequence_kinds
def test_a_cache_without_a_decision_is_refused(kind: str) -> None:
    model = make_mixture(kind)
    with torch.no_grad(), model.disable_adapter():
        cache = model(input_ids=token_ids(), use_cache=True).past_key_values
    with pytest.raises(AdapterError, match=r"expected to go on from a prompt of 3 rows, got no prompt"):
        model(input_ids=token_ids(3, 1), past_key_values=cache)
    with torch.no_grad():
        cache = model(input_ids=token_ids(), use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([0, 2]))
    with pytest.raises(AdapterError, match=r"prompt of 2 rows, got one of 3.*call select_rows"):
        model(input_ids=token_ids(2, 1), past_key_values=cache)


@sequence_kinds
def test_rows_that_leave_the_batch(kind: str) -> None:
    model, batch = make_mixture(kind), left_padded()
    kept = torch.tensor([0, 2])
    more = token_ids(3, 2)
    with torch.no_grad():
        want = model(input_ids=more, past_key_values=model(**batch, use_cache=True).past_key_values).logits
        cache = model(**batch, use_cache=True).past_key_values
        cache.batch_select_indices(kept)
        model.select_rows(kept)
        got = model(input_ids=more[kept], past_key_values=cache).logits
    torch.testing.assert_close(got, want[kept], rtol=0, atol=1e-5)


@sequence_kinds
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_follows_the_prompt_does_not_change_the_decision(kind: str, architecture: str) -> None:
    model, ids = make_mixture(kind, make_base(architecture)), token_ids()
    labels_BT = ids.clone()
    labels_BT[:, :6] = -100
    other = ids.clone()
    other[:, 6:] = ids[:, 6:].flip(0)
    with torch.no_grad():
        logits = [model(input_ids=one, labels=labels_BT).logits for one in (ids, other)]
        torch.testing.assert_close(logits[0][:, :6], logits[1][:, :6], rtol=0, atol=1e-5)
        read_whole = [model(input_ids=one).logits for one in (ids, other)]
    assert not torch.allclose(read_whole[0][:, :6], read_whole[1][:, :6], rtol=0, atol=1e-2)
