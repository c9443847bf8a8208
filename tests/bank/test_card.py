"""Model cards say what was trained on what, and what it learned."""

from kshot.bank.card import adapter_card, bank_card, source_of
from kshot.bank.recipe import AdapterRecipe, BankRecipe

RECIPE = BankRecipe(
    name="tiny",
    base_model="owner/base",
    r=8,
    adapters=(
        AdapterRecipe(name="sums", family="chain_sum", licence="Apache-2.0"),
        AdapterRecipe(name="facts", data="facts.jsonl", r=4),
    ),
)
RECORD = {
    "base_nll": 2.5,
    "held_out_nll": 1.25,
    "train_rows": 640,
    "held_out_rows": 100,
    "train_tokens": 9999,
    "loss_first_third": 2.0,
    "loss_last_third": 1.0,
    "seconds": 12.5,
}


def test_adapter_card() -> None:
    card = adapter_card(RECIPE, RECIPE.adapters[0], RECORD)
    assert card.startswith(
        "---\nbase_model: owner/base\nlibrary_name: peft\nlicence".replace("licence", "license")
    )
    for said in (
        "# sums",
        "r = 8",
        "640 rows",
        "mean NLL 2.5 (base) -> **1.25**",
        "family chain_sum",
        "q_proj, v_proj",
    ):
        assert said in card


def test_bank_card_has_a_row_for_each_adapter() -> None:
    card = bank_card(RECIPE, {"sums": RECORD, "facts": {**RECORD, "held_out_nll": 0.5}})
    rows = [line for line in card.splitlines() if line.startswith("| ") and "adapter" not in line]
    assert rows == [
        "| sums | reasoning-gym family chain_sum | Apache-2.0 | 8 | 640 | 2.5 | **1.25** | 1.0 | 12.5 |",
        "| facts | facts.jsonl | unknown | 4 | 640 | 2.5 | **0.5** | 1.0 | 12.5 |",
    ]


def test_source_of() -> None:
    assert source_of(AdapterRecipe(name="a", data="x", origin="OpenBookQA")) == "OpenBookQA"
