"""What layers know of a pass (padding, prompt, cache), and what sequence-level routers decide by it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import DynamicCache, LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

from kshot.batching import Batch, label_logits
from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, RoutingStatistics, build_mixture, collect_routing
from kshot.mixture.expert import linear_shape
from kshot.mixture.model import mixture_layers

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
MakeMixture = Callable[..., PeftModel]
NO_LABEL = -100
PAD = 0
Q0, DOWN1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
MODULES = {
    f"model.layers.{i}.{name}": (inputs, 32, 2, 2.0)
    for i in (0, 1)
    for name, inputs in {"self_attn.q_proj": 32, "mlp.down_proj": 48}.items()
}
SCOPES = pytest.mark.parametrize("router_scope", ["module", "layer"])


@pytest.fixture
def experts(random_expert: MakeExpert) -> dict[str, LoraExpert]:
    return {name: random_expert(name, MODULES, seed) for seed, name in enumerate("abc")}


@pytest.fixture
def make_mixture(experts: dict[str, LoraExpert], make_llama: MakeModel) -> MakeMixture:
    """A mixture that decides once a sequence, with experts loud enough that a wrong gate shows."""

    def make(base: nn.Module | None = None, **options: Any) -> PeftModel:
        options = {"router_granularity": "sequence", "router_init_std": 1.0, "top_k": 2} | options
        return build_mixture(make_llama() if base is None else base, experts, **options).eval()

    return make


def gates_at(routing: RoutingStatistics, place: int = -1) -> torch.Tensor:
    """(modules, B, T, E) gates of one of the passes that were collected, by default the last."""
    return torch.stack([module.tokens[place] for module in routing.modules.values()])


@torch.no_grad()
def gates_in_a_pass(model: nn.Module, **inputs: Any) -> torch.Tensor:
    """(modules, B, E) gates of each row, which must be the same at each of its real tokens."""
    with collect_routing(model, keep_tokens=True) as routing:
        model(**inputs)
    gates_mBTE = gates_at(routing)
    gates_mBE = gates_mBTE.amax(dim=2)
    mask_BT = inputs.get("attention_mask", torch.ones(gates_mBTE.shape[1:3])).bool()
    assert torch.equal(gates_mBTE[:, mask_BT], gates_mBE.unsqueeze(2).expand_as(gates_mBTE)[:, mask_BT])
    return gates_mBE


def padded(rows: list[torch.Tensor], *, left: bool) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask."""
    length = max(len(row) for row in rows)
    fill = [torch.full((length - len(row),), PAD) for row in rows]
    pairs = [(pad, row) if left else (row, pad) for pad, row in zip(fill, rows, strict=True)]
    input_ids = torch.stack([torch.cat(pair) for pair in pairs])
    return {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}


@pytest.fixture
def rows() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(2, 64, (length,), generator=draw) for length in (4, 9, 6)]


def test_against_the_mean_over_the_prompt(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture(top_k=3)
    layer = mixture_layers(model, "default")[Q0]
    inputs = []
    layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    labels = token_ids.clone()
    labels[0, :5] = NO_LABEL
    labels[1, :2] = NO_LABEL
    gates_mBE = gates_in_a_pass(model, input_ids=token_ids, labels=labels)
    for row, length in enumerate((5, 2)):
        logits = inputs[0][row, :length].mean(dim=0) @ layer.mixture_router["default"].weight.T
        torch.testing.assert_close(gates_mBE[0, row], logits.softmax(-1))


@SCOPES
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_invariant_padding_changes_no_decision(
    left: bool, router_scope: str, make_mixture: MakeMixture, rows: list[torch.Tensor]
) -> None:
    model = make_mixture(router_scope=router_scope)
    alone = torch.cat([gates_in_a_pass(model, input_ids=row[None]) for row in rows], dim=1)
    batch = padded(rows, left=left)
    together = gates_in_a_pass(model, input_ids=batch["input_ids"], **in_positions(batch["attention_mask"]))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    without_mask = gates_in_a_pass(model, input_ids=batch["input_ids"])
    assert not torch.allclose(without_mask, alone, atol=1e-2)


@SCOPES
def test_prompt_from_labels_is_the_prompt_alone(
    router_scope: str, make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture(router_scope=router_scope)
    labels = token_ids.clone()
    labels[:, :6] = NO_LABEL
    torch.testing.assert_close(
        gates_in_a_pass(model, input_ids=token_ids, labels=labels),
        gates_in_a_pass(model, input_ids=token_ids[:, :6]),
    )


def test_invariant_answer_tokens_never_influence_gates(
    make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture()
    other = token_ids.clone()
    other[:, 6:] = (other[:, 6:] + 7) % 60 + 2
    prompt = torch.arange(9).expand(2, 9) < 6

    def with_labels(ids: torch.Tensor) -> torch.Tensor:
        return gates_in_a_pass(model, input_ids=ids, labels=ids.masked_fill(prompt, NO_LABEL))

    def with_prompt(ids: torch.Tensor) -> torch.Tensor:
        with model.route_by_prompt(prompt):
            return gates_in_a_pass(model, input_ids=ids)

    want = with_labels(token_ids)
    assert torch.equal(with_labels(other), want)
    assert torch.equal(with_prompt(token_ids), want)
    assert torch.equal(with_prompt(other), want)
    assert not torch.allclose(gates_in_a_pass(model, input_ids=other), want, atol=1e-3)  # a leak shows


def test_a_later_answer_is_no_prompt(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    """Of several turns, the first is read, and nothing behind the first label."""
    model = make_mixture()
    labels = token_ids.clone()
    labels[:, :3] = labels[:, 5:7] = NO_LABEL
    torch.testing.assert_close(
        gates_in_a_pass(model, input_ids=token_ids, labels=labels),
        gates_in_a_pass(model, input_ids=token_ids[:, :3]),
    )


def test_route_by_prompt_outranks_labels_and_ends_with_its_block(
    make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture()
    labels = token_ids.clone()
    labels[:, :6] = NO_LABEL
    short, shorter = torch.arange(9).expand(2, 9) < 4, torch.arange(9).expand(2, 9) < 2
    with model.route_by_prompt(short):
        with model.route_by_prompt(shorter):
            inner = gates_in_a_pass(model, input_ids=token_ids, labels=labels)
        outer = gates_in_a_pass(model, input_ids=token_ids, labels=labels)
    after = gates_in_a_pass(model, input_ids=token_ids, labels=labels)
    for got, length in ((inner, 2), (outer, 4), (after, 6)):
        torch.testing.assert_close(got, gates_in_a_pass(model, input_ids=token_ids[:, :length]))


def test_a_row_without_prompt_has_the_gates_of_the_prior(
    make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture(expert_scores={"a": 0.0, "b": 1.0, "c": 2.0}, top_k=3)
    gates_mBE = gates_in_a_pass(model, input_ids=token_ids, labels=token_ids)
    want = torch.tensor([0.0, 1.0, 2.0]).softmax(-1)
    torch.testing.assert_close(gates_mBE, want.expand_as(gates_mBE))


def in_positions(mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"attention_mask": mask_BT, "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)}


@SCOPES
@pytest.mark.parametrize("base", ["make_llama", "make_gpt2"])
def test_teacher_forcing_equals_cached_generation(
    base: str,
    router_scope: str,
    request: pytest.FixtureRequest,
    rows: list[torch.Tensor],
    random_expert: MakeExpert,
) -> None:
    bare = request.getfixturevalue(base)()
    kinds = {"make_llama": ("self_attn.q_proj", "mlp.down_proj"), "make_gpt2": ("attn.c_attn", "mlp.c_proj")}
    shapes = {
        name: linear_shape(module) for name, module in bare.named_modules() if name.endswith(kinds[base])
    }
    modules = {name: (inputs, outputs, 2, 2.0) for name, (outputs, inputs) in shapes.items()}
    experts = {name: random_expert(name, modules, seed) for seed, name in enumerate("abc")}
    options = {"router_granularity": "sequence", "router_scope": router_scope, "router_init_std": 1.0}
    model = build_mixture(bare, experts, **options).eval()
    prompts = padded(rows, left=True)
    with collect_routing(model, keep_tokens=True) as routing:
        texts = model.generate(**prompts, max_new_tokens=5, do_sample=False)
    assert texts.shape == (3, 14)
    mask = torch.cat([prompts["attention_mask"], torch.ones(3, 5, dtype=torch.int64)], dim=1)
    labels = texts.clone()
    labels[:, :9] = NO_LABEL
    inputs = {"input_ids": texts, "labels": labels, **in_positions(mask)}
    forced = gates_in_a_pass(model, **inputs)
    prefill = gates_at(routing, 0).amax(dim=2)
    torch.testing.assert_close(prefill, forced, rtol=0, atol=1e-5)
    for step in range(1, 5):
        assert torch.equal(gates_at(routing, step).squeeze(2), prefill)  # decided once
    with torch.no_grad():
        logits = model(**inputs).logits
    assert torch.equal(logits[:, 8:-1].argmax(-1), texts[:, 9:])


@SCOPES
def test_cached_steps_equal_one_pass(
    router_scope: str, make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture(router_scope=router_scope)
    labels = token_ids.clone()
    labels[:, :4] = NO_LABEL
    with torch.no_grad():
        want = model(input_ids=token_ids, labels=labels).logits
        cache = DynamicCache(config=model.config)
        parts = [
            model(input_ids=token_ids[:, start:stop], past_key_values=cache, use_cache=True).logits
            for start, stop in ((0, 4), (4, 5), (5, 9))  # the last step brings several tokens
        ]
    torch.testing.assert_close(torch.cat(parts, dim=1), want, rtol=0, atol=1e-5)


def test_beams_of_a_row_share_its_decision(make_mixture: MakeMixture, rows: list[torch.Tensor]) -> None:
    model = make_mixture()
    prompts = padded(rows, left=True)
    with collect_routing(model, keep_tokens=True) as routing:
        model.generate(**prompts, max_new_tokens=4, num_beams=3, do_sample=False)
    by_row = gates_in_a_pass(model, input_ids=prompts["input_ids"], **in_positions(prompts["attention_mask"]))
    want = by_row.repeat_interleave(3, dim=1)
    for step in range(4):
        torch.testing.assert_close(gates_at(routing, step).amax(dim=2), want, rtol=0, atol=1e-5)


def test_select_rows_follows_the_batch(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture()
    ids = torch.cat([token_ids, token_ids.flip(1)])
    want = gates_in_a_pass(model, input_ids=ids)
    cache = DynamicCache(config=model.config)
    kept = torch.tensor([3, 1])
    with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache.batch_select_indices(kept)
        model.select_rows(kept)
        model(input_ids=ids[kept, :1], past_key_values=cache, use_cache=True)
    assert torch.equal(gates_at(routing).squeeze(2), want[:, kept])


def test_refuses_to_go_on_with_other_rows(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model, plain = make_mixture(), make_mixture(router_granularity="token")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        plain(input_ids=token_ids, past_key_values=cache, use_cache=True)
        with pytest.raises(AdapterError, match=r"from a prompt of 2 rows, got no prompt: .* select_rows"):
            model(input_ids=token_ids[:, :1], past_key_values=cache)
        cache = DynamicCache(config=model.config)
        model(input_ids=token_ids[[0, 1, 1]], past_key_values=cache, use_cache=True)
        cache.batch_select_indices(torch.tensor([0, 2]))
        with pytest.raises(AdapterError, match=r"from a prompt of 2 rows, got one of 3"):
            model(input_ids=token_ids[:, :1], past_key_values=cache)


def test_refuses_masks_that_do_not_say_where_padding_is(
    make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    mask = torch.zeros(2, 1, 9, 9).masked_fill(
        torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min
    )
    message = r"expected attention_mask of shape \(rows, tokens\).* got \(2, 1, 9, 9\)"
    with pytest.raises(ConfigError, match=message):
        make_mixture()(input_ids=token_ids, attention_mask=mask)
    plain = make_mixture(router_granularity="token")
    with pytest.raises(ConfigError, match=message), collect_routing(plain):
        plain(input_ids=token_ids, attention_mask=mask)
    with torch.no_grad():  # a token-level router needs no mask
        got = plain(input_ids=token_ids, attention_mask=mask).logits
        torch.testing.assert_close(got, plain(input_ids=token_ids).logits, rtol=0, atol=1e-5)


class MasksByKind(nn.Module):
    """Takes prepared masks in a dictionary, as bases with sliding windows do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x_BTD: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        return self.layer(x_BTD)


def test_refuses_prepared_masks(random_expert: MakeExpert) -> None:
    experts = {"a": random_expert("a", {"layer": (4, 4, 2, 1.0)}, seed=1)}
    model = build_mixture(MasksByKind(), experts, router_granularity="sequence")
    with pytest.raises(ConfigError, match=r"expected attention_mask of shape \(rows, tokens\), .* got dict"):
        model(torch.randn(2, 3, 4), attention_mask={"full_attention": torch.ones(2, 1, 3, 3)})


def test_a_backbone_called_alone(make_mixture: MakeMixture, rows: list[torch.Tensor]) -> None:
    """As embedders and rerankers do: what the model's own forward said before is of another batch."""
    model = make_mixture()
    backbone = model.get_base_model().model
    batch = padded(rows, left=False)
    want = gates_in_a_pass(model, **batch)
    labels = batch["input_ids"].clone()
    labels[:, :2] = NO_LABEL
    for inputs in (batch, {"input_ids": batch["input_ids"]}):
        model(**inputs, labels=labels)  # leaves a prompt of two tokens behind
        with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
            backbone(**inputs)
        got = gates_at(routing).amax(dim=2)
        if "attention_mask" in inputs:
            torch.testing.assert_close(got, want)
        else:
            assert not torch.allclose(got, want)
            torch.testing.assert_close(got[:, 1], want[:, 1])  # the row without padding
    short = torch.arange(9).expand(3, 9) < 2
    with torch.no_grad(), model.route_by_prompt(short), collect_routing(model, keep_tokens=True) as routing:
        backbone(**batch)
    want = gates_in_a_pass(model, **batch, labels=labels)
    torch.testing.assert_close(gates_at(routing).amax(dim=2), want)


def test_a_failed_pass_leaves_no_prompt(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture()
    backbone = model.get_base_model().model
    want = gates_in_a_pass(model, input_ids=token_ids)
    labels = token_ids.clone()
    labels[:, :3] = NO_LABEL
    handle = backbone.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=token_ids, labels=labels)
    handle.remove()
    with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
        backbone(input_ids=token_ids)
    assert torch.equal(gates_at(routing).amax(dim=2), want)


def batch_of(rows: list[torch.Tensor], prompt_lengths: list[int]) -> Batch:
    batch = padded(rows, left=True)
    labels = torch.full_like(batch["input_ids"], NO_LABEL)
    for row, (ids, length) in enumerate(zip(rows, prompt_lengths, strict=True)):
        labels[row, length - len(ids) :] = ids[length:]
    return Batch(batch["input_ids"], batch["attention_mask"], labels)


@SCOPES
def test_label_logits_see_the_prompt_alone(
    router_scope: str, make_mixture: MakeMixture, rows: list[torch.Tensor]
) -> None:
    model = make_mixture(router_scope=router_scope)
    lengths = [1, 6, 5]
    with torch.no_grad():
        together = label_logits(model, batch_of(rows, lengths))
        alone = [
            label_logits(model, batch_of([row], [length])) for row, length in zip(rows, lengths, strict=True)
        ]
        by_labels = []
        for row, length in zip(rows, lengths, strict=True):
            labels = row.clone()
            labels[:length] = NO_LABEL
            by_labels.append(model(input_ids=row[None], labels=labels[None]).logits[0, length - 1 : -1])
        leaky = model(input_ids=rows[1][None]).logits[0, 5:-1]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    torch.testing.assert_close(together, torch.cat(by_labels), rtol=0, atol=1e-5)
    assert not torch.allclose(leaky, by_labels[1], atol=1e-3)


def test_labels_of_whole_rows_are_no_prompt(
    experts: dict[str, LoraExpert], make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    config = make_llama().config
    config.num_labels, config.problem_type = 3, "single_label_classification"
    base = LlamaForSequenceClassification(config).eval()
    model = build_mixture(base, experts, router_granularity="sequence", router_init_std=1.0).eval()
    mask = torch.ones_like(token_ids)
    want = gates_in_a_pass(model, input_ids=token_ids, attention_mask=mask)
    got = gates_in_a_pass(model, input_ids=token_ids, attention_mask=mask, labels=torch.tensor([0, 2]))
    assert torch.equal(got, want)


def test_refuses_an_encoder_decoder(random_expert: MakeExpert) -> None:
    config = T5Config(
        vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    name = "decoder.block.0.layer.0.SelfAttention.q"
    experts = {"a": random_expert("a", {name: (8, 8, 2, 1.0)}, seed=1)}
    base = T5ForConditionalGeneration(config)
    with pytest.raises(ConfigError, match=r"one sequence of tokens to follow, got an encoder-decoder"):
        build_mixture(base, experts, router_granularity="sequence")
    assert not any("mixture" in key for key in base.state_dict())
    model = build_mixture(base, experts)
    message = r"got an encoder-decoder: .* no routing statistics"
    with pytest.raises(ConfigError, match=message), collect_routing(model):
        pass


def test_refuses_inputs_without_rows(random_expert: MakeExpert) -> None:
    """Flattened tokens, as mixture-of-experts bases pass to their experts: their rows are unknown."""
    experts = {"a": random_expert("a", {"0": (4, 4, 2, 1.0)}, seed=1)}
    x = torch.randn(3, 4)
    model = build_mixture(nn.Sequential(nn.Linear(4, 4)), experts, router_granularity="sequence")
    with pytest.raises(ConfigError, match=r"inputs of shape \(rows, tokens, features\) and a prompt"):
        model(x)
    token_level = build_mixture(nn.Sequential(nn.Linear(4, 4)), experts)
    with collect_routing(token_level) as routing:
        token_level(x)
    assert routing.modules["0"].num_tokens == 3


def test_refuses_a_prompt_of_another_batch(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture()
    message = r"and a prompt of \(rows, tokens\), got \(2, 9, 32\) and \(2, 8\): pass"
    with pytest.raises(ConfigError, match=message), model.route_by_prompt(torch.ones(2, 8)):
        model(input_ids=token_ids)


def hooks_of(model: nn.Module) -> int:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in (base, base.base_model))


def test_hooks_are_there_as_long_as_they_are_needed(
    experts: dict[str, LoraExpert], make_mixture: MakeMixture
) -> None:
    model = make_mixture(router_granularity="token")
    assert hooks_of(model) == 0
    build_mixture(model, experts, router_granularity="sequence", adapter_name="first")
    needed = hooks_of(model)
    assert needed > 0
    build_mixture(model, experts, router_granularity="sequence", adapter_name="second")
    assert hooks_of(model) == needed
    model.delete_adapter("first")
    assert hooks_of(model) == needed
    model.delete_adapter("second")
    assert hooks_of(model) == 0
    build_mixture(model, experts, router_granularity="sequence", adapter_name="third")
    assert hooks_of(model) == needed
    assert hooks_of(model.unload()) == 0
