"""What routing statistics add up to, and that collecting them leaves and costs nothing."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from kshot.errors import ConfigError
from kshot.mixture import LoraExpert, build_mixture, collect_routing
from kshot.mixture.model import mixture_layers

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
MakeMixture = Callable[..., PeftModel]
MODULES = {
    f"model.layers.{i}.{name}": (inputs, 32, 2, 2.0)
    for i in (0, 1)
    for name, inputs in {"self_attn.q_proj": 32, "mlp.down_proj": 48}.items()
}
Q0, DOWN0 = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
KINDS = {
    "token": {},
    "sequence": {"router_granularity": "sequence"},
    "layer": {"router_scope": "layer"},
    "null": {"null_expert": True},
    "fixed": {"fixed_gates": [0.5, 0.3, 0.2]},
}
kinds = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


@pytest.fixture
def make_mixture(random_expert: MakeExpert, make_llama: MakeModel) -> MakeMixture:
    experts = {name: random_expert(name, MODULES, seed) for seed, name in enumerate("abc")}

    def make(**options: Any) -> PeftModel:
        start = {} if "fixed_gates" in options else {"router_init_std": 1.0, "top_k": 2}
        return build_mixture(make_llama(), experts, **(start | options)).eval()

    return make


@pytest.fixture
def batch(token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two rows, padded on both sides: 5 and 9 real tokens."""
    mask = torch.ones_like(token_ids)
    mask[0, :3] = 0
    mask[0, -1:] = 0
    return {"input_ids": token_ids, "attention_mask": mask}


@kinds
@pytest.mark.parametrize("training", [True, False])
def test_invariant_mass_is_the_number_of_real_tokens(
    options: dict[str, Any],
    training: bool,
    make_mixture: MakeMixture,
    batch: dict[str, torch.Tensor],
    token_ids: torch.Tensor,
) -> None:
    model = make_mixture(**options).train(training)
    with collect_routing(model) as routing:
        model(**batch)
        model(input_ids=token_ids)
    assert set(routing.modules) == set(MODULES)
    for module in routing.modules.values():
        assert module.num_tokens == 14 + 18
        assert module.mass_E.sum().item() == pytest.approx(32, abs=1e-4)
        assert sum(module.mean_gates) == pytest.approx(1, abs=1e-5)
        assert not module.mass_E.requires_grad
        assert module.tokens == []
    assert sum(routing.overall().values()) == pytest.approx(1, abs=1e-5)


def test_padding_never_counts(make_mixture: MakeMixture, batch: dict[str, torch.Tensor]) -> None:
    model = make_mixture()
    seen = []
    for filler in (1, 50):
        ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, filler)
        with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
            model(input_ids=ids, attention_mask=batch["attention_mask"])
        seen.append(routing.modules)
    padding = batch["attention_mask"] == 0
    for module in MODULES:
        first, second = (one[module] for one in seen)
        torch.testing.assert_close(first.mass_E, second.mass_E)
        torch.testing.assert_close(first.entropy, second.entropy)
        assert (first.tokens[0][padding] == 0).all()
        assert (first.tokens[0][~padding].sum(dim=-1) - 1).abs().max() < 1e-6


def test_what_is_not_a_number_at_padding_never_counts(make_mixture: MakeMixture) -> None:
    """Some attention kernels return NaN in rows that are masked as a whole."""
    model = make_mixture()
    layer = mixture_layers(model, "default")[Q0]
    x = torch.randn(1, 4, 32)
    x[0, 0] = torch.nan
    model.base_model.routing._mask = torch.tensor([[0, 1, 1, 1]])
    with torch.no_grad(), collect_routing(model) as routing:
        layer(x)
    assert routing.modules[Q0].mass_E.sum().item() == pytest.approx(3, abs=1e-5)
    assert math.isfinite(routing.modules[Q0].mean_entropy)


def test_against_sums_over_tokens(make_mixture: MakeMixture, batch: dict[str, torch.Tensor]) -> None:
    model = make_mixture()
    with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
        model(**batch)
        model(input_ids=batch["input_ids"][:, :4])
    for module in routing.modules.values():
        gates = torch.cat([passed.flatten(end_dim=1) for passed in module.tokens])
        gates = gates[gates.sum(dim=-1) > 0]
        assert len(gates) == 14 + 8
        torch.testing.assert_close(torch.tensor(module.mean_gates), gates.mean(dim=0))
        entropy = torch.tensor([sum(-g * math.log(g) for g in row if g > 0) for row in gates.tolist()])
        assert module.mean_entropy == pytest.approx(entropy.mean().item(), abs=1e-5)
        assert 0 < module.mean_entropy < math.log(2)  # two experts a token


def test_entropy_of_known_gates(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    for gates, want in (([1.0, 0.0, 0.0], 0.0), ([1 / 3] * 3, math.log(3)), ([0.5, 0.5, 0.0], math.log(2))):
        model = make_mixture(fixed_gates=gates)
        with torch.no_grad(), collect_routing(model) as routing:
            model(input_ids=token_ids)
        assert routing.modules[Q0].mean_entropy == pytest.approx(want, abs=1e-6)
        assert routing.overall() == pytest.approx(dict(zip("abc", gates, strict=True)), abs=1e-6)


def test_by_layer_is_the_mean_over_its_modules(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture(null_expert=True)
    with torch.no_grad(), collect_routing(model) as routing:
        model(input_ids=token_ids)
    assert routing.choices == ("a", "b", "c", "(none)")
    layers = routing.by_layer()
    assert list(layers) == ["model.layers.0", "model.layers.1"]
    query, down = routing.modules[Q0].mean_gates, routing.modules[DOWN0].mean_gates
    want = [(one + other) / 2 for one, other in zip(query, down, strict=True)]
    assert layers["model.layers.0"] == pytest.approx(dict(zip(routing.choices, want, strict=True)))
    both = [(layers["model.layers.0"][name] + layers["model.layers.1"][name]) / 2 for name in routing.choices]
    assert routing.overall() == pytest.approx(dict(zip(routing.choices, both, strict=True)))


def test_modules_that_share_a_router_share_its_gates(
    make_mixture: MakeMixture, batch: dict[str, torch.Tensor]
) -> None:
    model = make_mixture(router_scope="layer")
    with torch.no_grad(), collect_routing(model, keep_tokens=True) as routing:
        model(**batch)
    assert torch.equal(routing.modules[Q0].tokens[0], routing.modules[DOWN0].tokens[0])


@kinds
def test_cached_generation_counts_each_token_once(
    options: dict[str, Any], make_mixture: MakeMixture, batch: dict[str, torch.Tensor]
) -> None:
    model = make_mixture(**options)
    ids, mask = batch["input_ids"][:, :8], batch["attention_mask"][:, :8]
    with collect_routing(model, keep_tokens=True) as routing:
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    for module in routing.modules.values():
        assert [tuple(gates.shape[:2]) for gates in module.tokens] == [(2, 8), (2, 1), (2, 1), (2, 1)]
        assert module.num_tokens == 5 + 8 + 3 * 2
        assert module.mass_E.sum().item() == pytest.approx(19, abs=1e-4)


def test_gradient_checkpointing_leaves_the_means_alone(
    make_mixture: MakeMixture, batch: dict[str, torch.Tensor]
) -> None:
    collected = []
    for checkpoint in (False, True):
        model = make_mixture().train()
        if checkpoint:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        with collect_routing(model) as routing:
            model(**batch).logits.sum().backward()
        collected.append(routing)
    assert [routing.modules[Q0].num_tokens.item() for routing in collected] == [14, 28]
    assert collected[1].overall() == pytest.approx(collected[0].overall())


def test_mixture_by_row_counts_its_own_rows(
    make_mixture: MakeMixture, random_expert: MakeExpert, batch: dict[str, torch.Tensor]
) -> None:
    model = make_mixture()
    build_mixture(model, {"z": random_expert("z", MODULES, 9)}, adapter_name="other")
    model.eval()
    with torch.no_grad(), collect_routing(model) as first, collect_routing(model, "other") as second:
        model(**batch, adapter_names=["default", "other"])
        assert first.modules[Q0].num_tokens == 5
        assert second.modules[Q0].num_tokens == 9
        model(**batch, adapter_names=["__base__", "default"])
    assert first.modules[Q0].num_tokens == 14
    assert second.overall() == {"z": 1.0}


def left_behind(model: PeftModel) -> int:
    """Recorders and hooks of a model, wherever they are."""
    modules = list(model.modules())
    recorders = sum(len(layer.recorders) for layer in mixture_layers(model, "default").values())
    return recorders + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


@kinds
def test_nothing_is_left_behind(
    options: dict[str, Any], make_mixture: MakeMixture, token_ids: torch.Tensor
) -> None:
    model = make_mixture(**options)
    before = left_behind(model)

    def run_and_fail() -> None:
        model(input_ids=token_ids)
        assert left_behind(model) > before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), collect_routing(model) as routing:
        run_and_fail()
    assert left_behind(model) == before
    mass = routing.modules[Q0].mass_E.clone()
    model(input_ids=token_ids)
    assert torch.equal(routing.modules[Q0].mass_E, mass)  # the block is over


def test_blocks_may_be_nested(make_mixture: MakeMixture, token_ids: torch.Tensor) -> None:
    model = make_mixture(router_granularity="sequence")
    labels = token_ids.clone()
    labels[:, :4] = -100
    with torch.no_grad(), collect_routing(model) as outer:
        with collect_routing(model) as inner:
            model(input_ids=token_ids, labels=labels)
        model(input_ids=token_ids, labels=labels)
    assert inner.modules[Q0].num_tokens == 18
    assert outer.modules[Q0].num_tokens == 36
    torch.testing.assert_close(outer.modules[Q0].mass_E, 2 * inner.modules[Q0].mass_E)


def test_invariant_collecting_changes_no_output(
    make_mixture: MakeMixture, batch: dict[str, torch.Tensor]
) -> None:
    model = make_mixture(null_expert=True)
    with torch.no_grad():
        want = model(**batch).logits
        with collect_routing(model, keep_tokens=True):
            assert torch.equal(model(**batch).logits, want)


class NoHostReads(TorchDispatchMode):
    """Fails where a number is read back, on which a GPU would have to be waited for."""

    reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@kinds
def test_collecting_reads_nothing_back(
    options: dict[str, Any], make_mixture: MakeMixture, batch: dict[str, torch.Tensor]
) -> None:
    model = make_mixture(**options)

    def reads(passes: Callable[[], None]) -> int:
        with torch.no_grad(), NoHostReads() as mode:
            passes()
        return mode.reads

    def passes() -> None:
        cache = DynamicCache(config=model.config)
        model(**batch, past_key_values=cache, use_cache=True)
        longer = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], dim=1)
        model(
            input_ids=batch["input_ids"][:, :1], attention_mask=longer, past_key_values=cache, use_cache=True
        )

    without = reads(passes)
    with collect_routing(model, keep_tokens=True) as routing:
        assert reads(passes) == without
    assert reads(lambda: routing.modules[Q0].mean_gates) > 0  # the count counts


def test_refuses_inputs_that_the_mask_does_not_fit(
    make_llama: MakeModel, random_expert: MakeExpert, batch: dict[str, torch.Tensor]
) -> None:
    """With `logits_to_keep` the head sees fewer tokens than the mask; with `logits_at` other rows."""
    experts = {"a": random_expert("a", {"lm_head": (32, 64, 2, 1.0)}, seed=1)}
    model = build_mixture(make_llama(), experts).eval()
    head = mixture_layers(model, "default")["lm_head"]
    with torch.no_grad(), collect_routing(model) as routing:
        model(**batch, logits_to_keep=1)
        assert routing.modules["lm_head"].num_tokens == 1  # of the last tokens, one is padding
        handle = head.register_forward_pre_hook(lambda _, args: (args[0].flatten(end_dim=1)[None],))
        with pytest.raises(ConfigError, match=r"beside an attention_mask of \(2, 9\), got \(1, 18, 32\)"):
            model(**batch)
        handle.remove()


def test_refuses_what_is_no_mixture(make_llama: MakeModel, two_experts: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"expected a mixture named 'default', got no adapters"):
        collect_routing(make_llama()).__enter__()
    model = build_mixture(make_llama(), two_experts)
    with pytest.raises(ConfigError, match=r"expected a mixture named 'x', got \['default'\]"):
        collect_routing(model, "x").__enter__()
