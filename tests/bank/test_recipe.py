"""A recipe is checked before anything is trained."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kshot.bank.recipe import AdapterRecipe, BankRecipe, data_digest, read_rows
from kshot.config import read_yaml
from kshot.errors import ConfigError, ExampleError, SourceError

ADAPTER = {"name": "a", "data": "x.jsonl"}


def read(tmp_path: Path, adapters: list[dict[str, Any]], **changes: Any) -> BankRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "b", "base_model": "m", "adapters": adapters, **changes}))
    return read_yaml(path, BankRecipe)


def rows_of(tmp_path: Path, outputs: list[str], **settings: Any) -> list[str | None]:
    lines = [json.dumps({"instruction": "a", "output": output}) for output in outputs]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    recipe = AdapterRecipe.model_validate({**ADAPTER, **settings})
    return [example.rationale for example in read_rows(recipe, size=5, seed=0, folder=tmp_path)]


def test_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, [ADAPTER])
    assert (recipe.rows, recipe.held_out, recipe.r, recipe.target_modules) == (
        1000,
        100,
        16,
        ("q_proj", "v_proj"),
    )
    assert BankRecipe.model_validate(recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    ("adapters", "changes", "message"),
    [
        ([], {}, "adapters: Tuple should have at least 1 item"),
        ([{"name": "a"}], {}, "adapters.0: adapter a needs either data or family"),
        ([{**ADAPTER, "family": "f"}], {}, "adapters.0: adapter a needs either data or family"),
        ([{**ADAPTER, "name": ".."}], {}, "adapters.0.name: String should match pattern"),
        ([ADAPTER, ADAPTER], {}, "adapter names must be distinct, got a more than once"),
        (
            [{**ADAPTER, "rationale_pattern": "("}],
            {},
            "rationale_pattern: expected a regular expression, missing",
        ),
        ([{**ADAPTER, "rationale_pattern": "x"}], {}, "rationale_pattern: expected .* with a group"),
        (
            [{**ADAPTER, "r": 3}],
            {"lora_alpha_over_r": 1.5},
            "lora_alpha_over_r must make lora_alpha whole, got 1.5 x 3",
        ),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path, adapters: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, adapters, **changes)


def test_rationale_pattern_keeps_the_rows_it_fits(tmp_path: Path) -> None:
    outputs = ["Because\nof it. So: 4", "5", " So: 6"]
    assert rows_of(tmp_path, outputs, rationale_pattern="(.*)So: ") == ["Because\nof it."]
    assert rows_of(tmp_path, outputs) == [None, None, None]
    with pytest.raises(
        ExampleError, match="a: expected rationale_pattern to fit some output, it fits none of 3"
    ):
        rows_of(tmp_path, outputs, rationale_pattern="(nothing)")


def test_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_TEST_DATA", str(tmp_path))
    assert rows_of(tmp_path, ["x"], data="$KSHOT_TEST_DATA/x.jsonl") == [None]
    monkeypatch.delenv("KSHOT_TEST_DATA")
    with pytest.raises(ConfigError, match=r"a: expected the variable in .*KSHOT_TEST_DATA/x.jsonl to be set"):
        rows_of(tmp_path, ["x"], data="$KSHOT_TEST_DATA/x.jsonl")


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a file at .*none.jsonl, found none"):
        rows_of(tmp_path, ["x"], data="none.jsonl")


def test_digest_of_the_data(tmp_path: Path) -> None:
    def digest(**source: str) -> str | None:
        return data_digest(AdapterRecipe(name="a", **source), tmp_path)

    (tmp_path / "x.jsonl").write_text("1")
    (tmp_path / "y.jsonl").write_text("2")
    assert digest(data="x.jsonl") == hashlib.sha256(b"1").hexdigest()
    both = digest(data="*.jsonl")
    (tmp_path / "y.jsonl").write_text("3")
    assert digest(data="*.jsonl") != both
    assert digest(data="hf://a/b") is None
    assert digest(family="chain_sum") is None
    with pytest.raises(SourceError, match=r"expected a file at .*none.jsonl, found none"):
        digest(data="none.jsonl")


def test_family(tmp_path: Path) -> None:
    recipe = AdapterRecipe(name="a", family="chain_sum")
    found = read_rows(recipe, size=5, seed=0, folder=tmp_path)
    assert len(found) == 5
    assert found == read_rows(recipe, size=5, seed=0, folder=tmp_path)
