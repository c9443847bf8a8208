"""Model cards: what an adapter of a built bank was trained on and learned; and the bank's own page."""

from collections.abc import Mapping

from kshot.bank.recipe import AdapterRecipe, BankRecipe

Record = Mapping[str, object]

_ADAPTER_CARD = """---
base_model: {base_model}
library_name: peft
license: {licence}
tags: [lora, kshot]
---

# {name}

A LoRA adapter (r = {r}) on {targets} of `{base_model}`, trained by `kshot bank build`.

- Data: {data}, licence: {licence}; {train_rows} rows, {train_tokens} tokens, {epochs} epoch(s), form: {form}
- Training: AdamW, learning rate {rate}, seed {seed}; loss of the first third {loss_first_third}, of the last
  third {loss_last_third} nats a token; {seconds} s
- Held-out rows ({held_out_rows}, never trained on): mean NLL {base_nll} (base) -> **{held_out_nll}** nats a
  token
"""


def adapter_card(recipe: BankRecipe, adapter: AdapterRecipe, record: Record) -> str:
    """Return the model card of one adapter."""
    return _ADAPTER_CARD.format(
        name=adapter.name,
        base_model=recipe.base_model,
        licence=adapter.licence,
        r=adapter.r or recipe.r,
        targets=", ".join(recipe.target_modules),
        data=source_of(adapter),
        form=adapter.form,
        epochs=record.get("epoch", recipe.training.num_train_epochs),
        rate=recipe.training.learning_rate,
        seed=recipe.seed,
        **record,
    )


def source_of(adapter: AdapterRecipe) -> str:
    """Return in words where the rows of an adapter come from."""
    return adapter.origin or (
        f"reasoning-gym family {adapter.family}" if adapter.family else str(adapter.data)
    )


def bank_card(recipe: BankRecipe, records: Mapping[str, Record]) -> str:
    """Return the page of the bank: every adapter with its rows, losses and time."""
    lines = [
        f"# {recipe.name}",
        "",
        f"{len(recipe.adapters)} LoRA adapters on `{recipe.base_model}`, made by `kshot bank build`.",
        "NLL: mean over held-out rows of the same set of the mean negative log-likelihood of a response",
        "token in nats; these rows are in no training set.",
        "",
        "| adapter | data | licence | r | rows | held-out NLL, base | adapter | last train loss | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for adapter in recipe.adapters:
        record = records[adapter.name]
        lines.append(
            f"| {adapter.name} | {source_of(adapter)} | {adapter.licence} | {adapter.r or recipe.r} "
            f"| {record['train_rows']} | {record['base_nll']} | **{record['held_out_nll']}** "
            f"| {record['loss_last_third']} | {record['seconds']} |"
        )
    return "\n".join([*lines, ""])
