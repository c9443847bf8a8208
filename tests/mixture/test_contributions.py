"""The report on loaded experts: norms of their changes, what they lack, and a table of all of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture import (
    Contribution,
    LoraExpert,
    LoraFactors,
    contribution_table,
    expert_contributions,
    load_expert,
    missing_modules,
)

MakeExpert = Callable[..., LoraExpert]
MakeLora = Callable[..., Path]
MakeModel = Callable[..., nn.Module]


def layers(
    kind: str, numbers: range, size: tuple[int, int, int, float]
) -> dict[str, tuple[int, int, int, float]]:
    return {f"model.layers.{number}.{kind}": size for number in numbers}


@pytest.fixture
def deep_experts(random_expert: MakeExpert) -> list[LoraExpert]:
    """Two experts of a model of 30 layers."""
    q, up = "self_attn.q_proj", "mlp.up_proj"
    math = layers(q, range(30), (8, 8, 4, 2.0)) | layers(up, range(28), (8, 12, 4, 2.0))
    code = layers(q, range(20), (8, 8, 2, 0.5)) | layers(q, range(20, 30), (8, 8, 3, 1.5))
    return [
        random_expert("math", math | {"lm_head": (8, 9, 1, 1.0)}, seed=1),
        random_expert("code", code, seed=2),
    ]


def test_norms_are_those_of_the_products(deep_experts: list[LoraExpert]) -> None:
    contributions = expert_contributions(deep_experts)
    assert len(contributions) == 30 + 28 + 1 + 30
    by_name = {expert.name: expert for expert in deep_experts}
    for one in contributions:
        factors = by_name[one.expert].factors[one.module]
        want = (factors.scaling * factors.B_Or.double() @ factors.A_rI.double()).norm().item()
        assert one.norm == pytest.approx(want, rel=1e-9)
        assert (one.r, one.scaling, one.dtype) == (factors.r, factors.scaling, "float32")
        assert one.conversion_error is None


def test_dtypes_and_signs() -> None:
    A, B = torch.eye(2, 3), torch.eye(3, 2)
    factors = {
        "a": LoraFactors(A.bfloat16(), B.bfloat16(), -2.0),
        "b": LoraFactors(A, B.half(), 0.0),
        "c": LoraFactors(A, torch.zeros(3, 2), 1.0),
    }
    assert expert_contributions([LoraExpert("e", None, factors)]) == [
        Contribution("e", "a", 2, -2.0, "bfloat16", pytest.approx(2 * 2**0.5)),
        Contribution("e", "b", 2, 0.0, "float32/float16", 0.0),
        Contribution("e", "c", 2, 1.0, "float32", 0.0),
    ]


def test_missing_modules_name_every_expert(deep_experts: list[LoraExpert]) -> None:
    missing = missing_modules(deep_experts)
    assert missing["math"] == []
    assert missing["code"] == sorted(["lm_head", *(f"model.layers.{n}.mlp.up_proj" for n in range(28))])
    assert missing_modules([]) == {}
    with pytest.raises(ConfigError, match=r"experts must have different names, got 'code' twice: rename one"):
        missing_modules([deep_experts[1], deep_experts[1]])


def test_golden_table(deep_experts: list[LoraExpert]) -> None:
    table = contribution_table(deep_experts).splitlines()
    columns = [line.split() for line in table]
    assert columns[0] == ["expert", "modules", "r", "scaling", "dtype", "mean", "norm"]
    assert [line[:6] for line in columns[1:]] == [
        ["math", "lm_head", "x1", "1", "1", "float32"],
        ["math", "mlp.up_proj", "x28", "4", "2", "float32"],
        ["math", "self_attn.q_proj", "x30", "4", "2", "float32"],
        ["code", "self_attn.q_proj", "x30", "2-3", "0.5-1.5", "float32"],
        ["code", "lm_head", "x1", "none"],
        ["code", "mlp.up_proj", "x28", "none"],
    ]
    norms = [one.norm for one in expert_contributions(deep_experts[:1]) if "up_proj" in one.module]
    assert float(columns[2][6]) == pytest.approx(sum(norms) / len(norms), rel=5e-3)
    assert len({line.index("x30") for line in table if "x30" in line}) == 1  # columns stand below each other


def test_table_of_experts_of_a_layer_and_of_two_stacks(random_expert: MakeExpert) -> None:
    size = (8, 8, 1, 1.0)
    moe = {f"model.layers.{n}.mlp.experts.{e}.up_proj": size for n in range(2) for e in range(3)}
    assert "mlp.experts.*.up_proj x6" in contribution_table([random_expert("e", moe, seed=0)])
    stacks = {f"{side}.block.{n}.q": size for side in ("encoder", "decoder") for n in range(2)}
    table = contribution_table([random_expert("e", stacks, seed=0)])
    assert "encoder.block.*.q x2" in table
    assert "decoder.block.*.q x2" in table


def test_table_has_the_errors_of_converted_experts(
    make_lora: MakeLora, make_llama: MakeModel, random_expert: MakeExpert
) -> None:
    folder = make_lora("lora", use_dora=True)
    converted = load_expert(folder, "was-dora", make_llama(), convert_rank=2)
    plain = random_expert("plain", {"model.layers.0.self_attn.q_proj": (32, 32, 1, 1.0)}, seed=0)
    header, first, *_, lacks_v, lacks_q = contribution_table([converted, plain]).splitlines()
    assert header.split()[-1] == "error"
    assert {one.conversion_error for one in expert_contributions([converted])} == set(
        converted.conversion_errors.values()
    )
    worst = max(error for module, error in converted.conversion_errors.items() if "q_proj" in module)
    assert float(first.split()[-1]) == pytest.approx(worst, rel=0.05)
    assert lacks_q.split() == ["plain", "self_attn.q_proj", "x1", "none"]
    assert lacks_v.split() == ["plain", "self_attn.v_proj", "x2", "none"]


def test_table_of_nothing() -> None:
    assert contribution_table([]).split() == ["expert", "modules", "r", "scaling", "dtype", "mean", "norm"]
