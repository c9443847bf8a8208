"""Settings out of range or without effect are refused, with the range."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from kshot.errors import ConfigError
from kshot.mixture import MixtureConfig

GROUP = {"modules": ["a", "b"], "ranks": [2, 3], "scalings": [1.0, 0.5]}


def make_config(**settings: Any) -> MixtureConfig:
    return MixtureConfig(**{"expert_names": ["x", "y"], "module_groups": [GROUP]} | settings)


BAD = [
    ({"expert_names": []}, r"at least 1 expert and 1 module, got 0 and 1"),
    ({"module_groups": []}, r"at least 1 expert and 1 module, got 2 and 0"),
    ({"expert_names": ["x", "x"]}, r"expert_names must be different and not empty, got \['x', 'x'\]"),
    ({"module_groups": [GROUP, GROUP]}, r"a module must be in one of module_groups, got a in two"),
    ({"module_groups": [{"modules": ["a"]}]}, r"must hold modules, ranks and scalings, got \['modules'\]"),
    ({"module_groups": [GROUP | {"ranks": [1]}]}, r"must hold 2 ranks >= 0, not all 0, .* got \[1\]"),
    ({"module_groups": [GROUP | {"ranks": [0, 0]}]}, r"must hold 2 ranks >= 0, not all 0, .* got \[0, 0\]"),
    ({"top_k": 3}, r"top_k must be in \[1, 2\], got 3: lower top_k or add experts"),
    ({"top_k": 0}, r"top_k must be in \[1, 2\], got 0"),
    ({"top_k": 4, "null_expert": True}, r"top_k must be in \[1, 3\], got 4"),
    ({"router_temperature": 0.0}, r"router_temperature must be > 0, got 0.0"),
    ({"router_temperature": 2.0, "top_k": 1}, r"router_temperature=2.0 has no effect with top_k=1"),
    ({"router_init_std": -1.0}, r"router_init_std must be >= 0, got -1.0"),
    ({"router_init_std": 0.0, "top_k": 1}, r"router_init_std must be > 0 with top_k=1 of 2, got 0"),
    ({"load_balancing": -0.1}, r"load_balancing must be >= 0, got -0.1"),
    ({"load_balancing": 0.1}, r"load_balancing=0.1 has no effect with top_k=2 of 2"),
    ({"shared_r": -1}, r"shared_r must be >= 0, got -1"),
    ({"shared_alpha": 4.0}, r"shared_alpha must be None without a shared expert, got 4.0"),
    ({"shared_alpha": 0.0, "shared_r": 2}, r"shared_alpha must be > 0, got 0.0"),
    ({"fixed_gates": [1.0]}, r"fixed_gates must be 2 finite numbers, one an expert, got \[1.0\]"),
    ({"fixed_gates": [1.0, float("nan")]}, r"fixed_gates must be 2 finite numbers"),
    ({"fixed_gates": [1.0, 0.0], "top_k": 2}, r"top_k=2 has no effect with fixed_gates"),
    ({"fixed_gates": [1.0, 0.0], "null_expert": True}, r"null_expert=True has no effect with fixed_gates"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**settings)


def test_default_top_k_is_two_or_all_there_are() -> None:
    assert make_config().top_k == 2
    one = {"modules": ["a"], "ranks": [1], "scalings": [1.0]}
    assert MixtureConfig(expert_names=["x"], module_groups=[one]).top_k == 1
    assert make_config(fixed_gates=[0.5, 0.5]).top_k is None


@pytest.mark.parametrize("settings", [{"null_expert": True, "top_k": 3}, {"fixed_gates": [0.1, -2.0]}])
def test_roundtrip_json(settings: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(seed=3, shared_r=4, shared_alpha=1 / 3, **settings)
    config.save_pretrained(str(tmp_path))
    assert PeftConfig.from_pretrained(str(tmp_path)) == config
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "KSHOT_MIXTURE"
    assert "target_modules" not in saved


def test_sizes_by_module() -> None:
    config = make_config()
    assert config.module_names == ("a", "b")
    assert config.sizes("b") == ([2, 3], [1.0, 0.5])
    assert config.covers("a")
    assert not config.covers("c")
