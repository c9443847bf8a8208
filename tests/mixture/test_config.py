"""Settings out of range or without effect are refused, with the range."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture import MixtureConfig
from kshot.mixture.config import layer_of

GROUP = {"modules": ["a", "b"], "ranks": [2, 3], "scalings": [1.0, 0.5]}


def make_config(**settings: Any) -> MixtureConfig:
    return MixtureConfig(**{"expert_names": ["x", "y"], "module_groups": [GROUP]} | settings)


NAN, INF = float("nan"), float("inf")
ORIGIN = {
    "name": "x", "source": "org/x@1", "base_model": None, "licence": "mit", "converted_from": "DORA",
    "conversion_error": 0.1,
}  # fmt: skip
FIXED = {"fixed_gates": [1.0, 0.0]}
BAD = [
    ({"expert_names": []}, r"at least 1 expert and 1 module, got 0 and 1: use build_mixture"),
    ({"module_groups": []}, r"at least 1 expert and 1 module, got 2 and 0"),
    ({"expert_names": ["x", "x"]}, r"expert_names must be different and not empty, got \['x', 'x'\]"),
    ({"expert_names": ["x", ""]}, r"expert_names must be different and not empty, got \['x', ''\]"),
    ({"expert_names": ["x", 3]}, r"expert_names must be different and not empty, got \['x', 3\]"),
    ({"expert_names": ["x", "12"]}, r"expert_names must not be digits alone, got \['x', '12'\]: rename"),
    ({"expert_origins": [ORIGIN]}, r"expert_origins must be empty or one an expert, got 1 of 2"),
    ({"module_groups": [GROUP, GROUP]}, r"a module must be in one of module_groups, got a in two"),
    ({"module_groups": [{"modules": ["a"]}]}, r"must hold modules, ranks and scalings, got \['modules'\]"),
    ({"module_groups": [GROUP | {"ranks": [1]}]}, r"must hold 2 ranks >= 0, not all 0, .* got \[1\]"),
    ({"module_groups": [GROUP | {"ranks": []}]}, r"must hold 2 ranks >= 0, not all 0, .* got \[\]"),
    ({"module_groups": [GROUP | {"ranks": [0, 0]}]}, r"must hold 2 ranks >= 0, not all 0, .* got \[0, 0\]"),
    ({"module_groups": [GROUP | {"ranks": [2, -1]}]}, r"must hold 2 ranks >= 0, .* got \[2, -1\]"),
    ({"module_groups": [GROUP | {"ranks": [2, 1.5]}]}, r"must hold 2 ranks >= 0, .* got \[2, 1.5\]"),
    ({"module_groups": [GROUP | {"scalings": [1.0]}]}, r"and as many scalings, .* and \[1.0\]"),
    ({"module_groups": [GROUP | {"scalings": [1.0, INF]}]}, r"and as many scalings, .* and \[1.0, inf\]"),
    ({"module_groups": [GROUP | {"scalings": [1.0, "2"]}]}, r"and as many scalings, .* and \[1.0, '2'\]"),
    ({"top_k": 3}, r"top_k must be in \[1, 2\], got 3: lower top_k or add experts"),
    ({"top_k": 0}, r"top_k must be in \[1, 2\], got 0"),
    ({"top_k": 1.0}, r"top_k must be in \[1, 2\], got 1.0"),
    ({"top_k": True}, r"top_k must be in \[1, 2\], got True"),
    ({"top_k": 4, "null_expert": True}, r"top_k must be in \[1, 3\], got 4"),
    ({"null_expert": "no"}, r"null_expert must be true or false, got 'no'"),
    ({"router_scope": "model"}, r"router_scope must be one of module, layer, got 'model'"),
    ({"router_granularity": "row"}, r"router_granularity must be one of token, sequence, got 'row'"),
    ({"router_start": "zero"}, r"router_start must be one of random, directions, got 'zero'"),
    ({"router_start": None}, r"router_start must be one of random, directions, got None"),
    ({"router_prior": [1.0]}, r"router_prior must be 2 finite numbers, one a choice, got \[1.0\]"),
    ({"router_prior": [1.0, 2.0], "null_expert": True}, r"router_prior must be 3 finite numbers"),
    ({"router_prior": [1.0, NAN]}, r"router_prior must be 2 finite numbers, one a choice, got \[1.0, nan\]"),
    ({"router_prior": [1.0, "2"]}, r"router_prior must be 2 finite numbers, one a choice, got \[1.0, '2'\]"),
    ({"router_temperature": 0.0}, r"router_temperature must be > 0, got 0.0: 1 leaves logits as they are"),
    ({"router_temperature": INF}, r"router_temperature must be > 0, got inf"),
    ({"router_temperature": "1"}, r"router_temperature must be > 0, got 1"),
    ({"router_temperature": 2.0, "top_k": 1}, r"router_temperature=2.0 has no effect with top_k=1"),
    ({"router_init_std": -1.0}, r"router_init_std must be >= 0, got -1.0"),
    ({"router_init_std": NAN}, r"router_init_std must be >= 0, got nan"),
    ({"router_init_std": 0.0, "top_k": 1}, r"router_init_std must be > 0 with top_k=1 of 2, got 0"),
    (
        {"router_init_std": 0.1, "router_start": "directions"},
        r'router_init_std=0.1 has no effect with router_start="directions", which draws nothing: drop one',
    ),
    ({"router_dropout": 1.0}, r"router_dropout must be in \[0, 1\), got 1.0: 0 is off"),
    ({"router_dropout": -0.1}, r"router_dropout must be in \[0, 1\), got -0.1"),
    ({"router_dropout": NAN}, r"router_dropout must be in \[0, 1\), got nan"),
    ({"load_balancing": -0.1}, r"load_balancing must be >= 0, got -0.1: 0 is off"),
    ({"load_balancing": INF}, r"load_balancing must be >= 0, got inf"),
    ({"load_balancing": 0.1}, r"load_balancing=0.1 has no effect with top_k=2 of 2: every expert is always"),
    ({"z_loss": -0.1}, r"z_loss must be >= 0, got -0.1: 0 is off"),
    ({"z_loss": NAN}, r"z_loss must be >= 0, got nan"),
    ({"shared_r": -1}, r"shared_r must be >= 0, got -1: 0 is no shared expert"),
    ({"shared_r": 2.0}, r"shared_r must be >= 0, got 2.0"),
    ({"shared_alpha": 4.0}, r"shared_alpha must be None without a shared expert, got 4.0: set shared_r"),
    ({"shared_alpha": 0.0, "shared_r": 2}, r"shared_alpha must be > 0, got 0.0: None is a scaling of 1"),
    ({"shared_alpha": INF, "shared_r": 2}, r"shared_alpha must be > 0, got inf"),
    ({"fixed_gates": [1.0]}, r"fixed_gates must be 2 finite numbers, one an expert, got \[1.0\]"),
    ({"fixed_gates": [1.0, NAN]}, r"fixed_gates must be 2 finite numbers"),
    ({"fixed_gates": []}, r"fixed_gates must be 2 finite numbers, one an expert, got \[\]"),
    (FIXED | {"top_k": 2}, r"top_k=2 has no effect with fixed_gates, which replace the router: drop one"),
    (FIXED | {"null_expert": True}, r"null_expert=True has no effect with fixed_gates"),
    (FIXED | {"router_scope": "layer"}, r"router_scope=layer has no effect with fixed_gates"),
    (FIXED | {"router_granularity": "sequence"}, r"router_granularity=sequence has no effect with fixed_"),
    (FIXED | {"router_start": "directions"}, r"router_start=directions has no effect with fixed_gates"),
    (FIXED | {"router_prior": [1.0, 0.0]}, r"router_prior=\[1.0, 0.0\] has no effect with fixed_gates"),
    (FIXED | {"router_temperature": 2.0}, r"router_temperature=2.0 has no effect with fixed_gates"),
    (FIXED | {"router_init_std": 0.1}, r"router_init_std=0.1 has no effect with fixed_gates"),
    (FIXED | {"router_dropout": 0.1}, r"router_dropout=0.1 has no effect with fixed_gates"),
    (FIXED | {"load_balancing": 0.1}, r"load_balancing=0.1 has no effect with fixed_gates"),
    (FIXED | {"z_loss": 0.1}, r"z_loss=0.1 has no effect with fixed_gates"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**settings)


def test_default_top_k_is_two_or_all_there_are() -> None:
    assert make_config().top_k == 2
    one = {"modules": ["a"], "ranks": [1], "scalings": [1.0]}
    assert MixtureConfig(expert_names=["x"], module_groups=[one]).top_k == 1
    assert make_config(fixed_gates=[0.5, 0.5]).top_k is None


ROUTED = {
    "top_k": 2, "router_scope": "layer", "router_granularity": "sequence", "router_start": "directions",
    "router_prior": [0.5, -0.25, 1 / 3], "router_temperature": 0.7, "router_dropout": 0.1,
    "null_expert": True, "load_balancing": 0.01, "z_loss": 1e-3,
    "expert_origins": [ORIGIN, ORIGIN | {"name": "y", "converted_from": None, "conversion_error": None}],
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [ROUTED, {"router_init_std": 0.0}, {"fixed_gates": [0.1, -2.0]}, {}],
    ids=["routed", "dense", "fixed", "defaults"],
)
def test_roundtrip_json(settings: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(seed=3, shared_r=4, shared_alpha=1 / 3, **settings)
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, MixtureConfig)
    assert loaded == config
    assert {name: getattr(loaded, name) for name in settings} == settings
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "KSHOT_MIXTURE"
    assert not {"target_modules", "_sizes", "_owners"} & set(saved)


def test_roundtrip_covers_every_setting_of_a_router() -> None:
    """A new setting must be in the round trip above, with a value that is not its default."""
    fields = {field.name: field.default for field in dataclasses.fields(MixtureConfig)}
    own = set(fields) - {field.name for field in dataclasses.fields(PeftConfig)}
    elsewhere = {"expert_names", "module_groups", "shared_r", "shared_alpha", "seed", "fixed_gates"}
    assert own - elsewhere == set(ROUTED) | {"router_init_std"}
    assert all(value != fields[name] for name, value in ROUTED.items() if name != "top_k")


def test_refuses_a_damaged_file(tmp_path: Path) -> None:
    make_config().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"router_prior": [1.0]}))
    with pytest.raises(ConfigError, match=r"router_prior must be 2 finite numbers"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_sizes_by_module() -> None:
    config = make_config()
    assert config.module_names == ("a", "b")
    assert config.sizes("b") == ([2, 3], [1.0, 0.5])
    assert config.covers("a")
    assert not config.covers("c")


def test_choices_count_the_null_expert() -> None:
    assert (make_config().num_experts, make_config().num_choices) == (2, 2)
    with_null = make_config(null_expert=True)
    assert (with_null.num_experts, with_null.num_choices) == (2, 3)


@pytest.mark.parametrize(("settings", "keeps"), [({}, False), ({"z_loss": 0.1}, True)])
def test_keeps_logits_for_a_loss(settings: dict[str, Any], keeps: bool) -> None:
    assert make_config(**settings).keeps_logits is keeps
    assert make_config(top_k=1, load_balancing=0.1).keeps_logits


LAYERS = {
    "model.layers.3.mlp.up_proj": "model.layers.3",
    "transformer.h.11.attn.c_attn": "transformer.h.11",
    "decoder.block.0.layer.1.DenseReluDense.wi": "decoder.block.0",
    "lm_head": "lm_head",
    "model.embed.proj": "model.embed.proj",
    "0": "0",
}


@pytest.mark.parametrize(("module", "layer"), LAYERS.items())
def test_layer_of(module: str, layer: str) -> None:
    assert layer_of(module) == layer


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z, self.a, self.m = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("settings", "owner"),
    [({}, "{i}.a"), ({"router_scope": "layer"}, "{i}.z"), ({"fixed_gates": [0.5, 0.5]}, "{i}.a")],
)
def test_the_first_module_that_the_base_defines_owns_the_router(settings: dict[str, Any], owner: str) -> None:
    modules = [f"{i}.{name}" for i in (1, 0) for name in "maz"]
    config = make_config(module_groups=[GROUP | {"modules": modules}], **settings)
    config.assign_routers(nn.Sequential(Layer(), Layer()))
    assert [config.router_owner(f"{i}.a") for i in (0, 1)] == [owner.format(i=i) for i in (0, 1)]
