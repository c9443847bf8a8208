"""Train a bank from a recipe: one adapter at a time, each measured on rows it did not see."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from kshot.atomic import new_folder, remove_drafts, write_json, write_text
from kshot.bank.adapter import WEIGHTS
from kshot.bank.bank import Bank
from kshot.bank.best_epoch import BestEpoch
from kshot.bank.card import adapter_card, bank_card, source_of
from kshot.bank.intake import read_draft
from kshot.bank.recipe import AdapterRecipe, BankRecipe, data_digest
from kshot.bank.row_hashes import write_row_hashes
from kshot.bank.split import Split, split_rows
from kshot.config import TrainingConfig, read_yaml
from kshot.errors import ConfigError, SourceError, reason_of
from kshot.language_model import LanguageModel
from kshot.prompts import TokenisedExample
from kshot.training import TrainingResult, fit

RECORD = "training.json"
Report = Callable[[str], None]


def build_bank(recipe_file: Path, folder: Path, *, report: Report = print) -> Bank:
    """Train every adapter of a recipe into `folder`; those already trained by the same recipe are kept.

    The recipe counts as changed where a data file of it is not, byte for byte, what it was.

    Args:
        recipe_file: YAML, see `BankRecipe`.
        folder: The bank.
        report: Called with a line for each adapter.

    Raises:
        ConfigError, SourceError, ExampleError: The recipe, its base model or its data cannot be used.
    """
    recipe = read_yaml(recipe_file, BankRecipe)
    bank = Bank.create(folder)
    remove_drafts(folder)
    lm = None
    for adapter in recipe.adapters:
        if found := _is_trained(bank, recipe, adapter, recipe_file.parent):
            report(f"{adapter.name}: {found}")
            continue
        lm = lm or LanguageModel.load(recipe.base_model, dtype=recipe.dtype, relative_to=recipe_file.parent)
        split = split_rows(lm, recipe, adapter, recipe_file.parent)
        known = {"data_sha256": data_digest(adapter, recipe_file.parent)}
        report(_build_adapter(bank, folder, lm, recipe, adapter, split, known))
    records = {adapter.name: _recorded(folder / adapter.name) for adapter in recipe.adapters}
    write_text(folder / "README.md", bank_card(recipe, records))
    return bank


def _is_trained(bank: Bank, recipe: BankRecipe, adapter: AdapterRecipe, folder: Path) -> str | None:
    """Return a word on an adapter that need not be trained, None for one that must be."""
    if adapter.name not in bank:
        return None
    held = bank[adapter.name]
    if _recorded(held.folder).get("recipe_sha256") != _digest(recipe, adapter):
        return None
    try:
        unchanged = held.entry.data_sha256 == data_digest(adapter, folder)
    except (ConfigError, SourceError):
        return "kept; its data is not here to compare"
    return "kept" if unchanged else None


def _build_adapter(
    bank: Bank,
    folder: Path,
    lm: LanguageModel,
    recipe: BankRecipe,
    adapter: AdapterRecipe,
    split: Split,
    known: dict[str, Any],
) -> str:
    """Train one adapter into the bank; return a line that says what it learned."""
    with new_folder(folder / adapter.name) as draft:
        record = _train_into(draft, lm, recipe, adapter, split) | {"recipe_sha256": _digest(recipe, adapter)}
        write_json(draft / RECORD, record)
        write_text(draft / "README.md", adapter_card(recipe, adapter, record))
        write_row_hashes(draft, split.train_rows)
        entry = read_draft(
            draft,
            adapter.name,
            str(folder / adapter.name),
            base_model=recipe.base_model,
            origin=source_of(adapter),
            licence=adapter.licence,
            trained_on=adapter.family or Path(adapter.data or "").stem,
            num_rows=len(split.train),
            **known,
        )
    bank.record(entry)
    return (
        f"{adapter.name}: held-out NLL {record['base_nll']:.3f} -> {record['held_out_nll']:.3f}, "
        f"{record['train_rows']} rows, {record['seconds']:.0f} s"
    )


def _train_into(
    draft: Path, lm: LanguageModel, recipe: BankRecipe, adapter: AdapterRecipe, split: Split
) -> dict[str, Any]:
    base = lm.model
    before = mean_nll(lm, split.held_out)
    lm.model = _fresh_lora(base, recipe, adapter)
    try:
        best = _best_epoch(lm, recipe, split)
        callbacks = [best] if best else []
        settings = _within_tokens(recipe, split.train)
        result = fit(lm, split.train, settings, seed=recipe.seed, callbacks=callbacks)
        if best:
            best.restore()
        _round_to_bfloat16(lm.model)
        after = mean_nll(lm, split.held_out)
        lm.model.peft_config["default"].base_model_name_or_path = recipe.base_model
        # the vocabulary is as it was: PEFT need not ask the Hub for the base's
        lm.model.save_pretrained(str(draft), save_embedding_layers=False)
    finally:
        lm.model = lm.model.unload()
    weights = {key: value.to(torch.bfloat16) for key, value in load_file(draft / WEIGHTS).items()}
    save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
    return _record(before, after, split, result, best)


def _within_tokens(recipe: BankRecipe, rows: list[TokenisedExample]) -> TrainingConfig:
    """Return the training with as many whole epochs as `recipe.tokens` allow."""
    if recipe.tokens is None:
        return recipe.training
    fit_in = max(1, recipe.tokens // sum(map(len, rows)))
    return recipe.training.model_copy(
        update={"num_train_epochs": min(fit_in, recipe.training.num_train_epochs)}
    )


def _best_epoch(lm: LanguageModel, recipe: BankRecipe, split: Split) -> BestEpoch | None:
    if recipe.patience is None:
        return None
    return BestEpoch(lm.model, lambda: mean_nll(lm, split.held_out), recipe.patience)


def _fresh_lora(base: torch.nn.Module, recipe: BankRecipe, adapter: AdapterRecipe) -> PeftModel:
    r = adapter.r or recipe.r
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=round(r * recipe.lora_alpha_over_r),  # whole, as the recipe checked
        target_modules=list(recipe.target_modules),
    )
    try:
        return cast(PeftModel, get_peft_model(cast(PreTrainedModel, base), config))
    except ValueError as error:
        raise ConfigError(
            f"expected target_modules of linear layers of {recipe.base_model}, "
            f"got {', '.join(recipe.target_modules)}: {reason_of(error)}"
        ) from error


def _round_to_bfloat16(model: torch.nn.Module) -> None:
    """Round the trained weights as they will be stored, so that what is measured is what is shipped."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.to(torch.bfloat16))


def mean_nll(lm: LanguageModel, rows: Sequence[TokenisedExample]) -> float:
    """Return the mean over the rows of the mean NLL of a target token, in nats."""
    return float(np.mean([values.mean() for values in lm.token_nll(rows)]))


def _record(
    before: float, after: float, split: Split, result: TrainingResult, best: BestEpoch | None
) -> dict[str, Any]:
    third = max(1, len(result.losses) // 3)
    epochs = (
        {"epoch": best.epoch, "held_out_nll_by_epoch": [round(nll, 4) for nll in best.history]}
        if best
        else {}
    )
    return {
        "base_nll": round(before, 4),
        "held_out_nll": round(after, 4),
        "train_rows": len(split.train),
        "held_out_rows": len(split.held_out),
        "train_tokens": result.num_tokens,
        "trainable_parameters": result.trainable_parameters,
        "loss_first_third": round(float(np.mean(result.losses[:third])), 4),
        "loss_last_third": round(float(np.mean(result.losses[-third:])), 4),
        "seconds": round(result.seconds, 1),
        **epochs,
    }


def _digest(recipe: BankRecipe, adapter: AdapterRecipe) -> str:
    """Hash what the weights depend on; defaults do not count, so that a new setting changes nothing."""
    shared = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"adapters", "name"})
    for without_effect in ("rationales", "report_to", "shot_repeats"):
        shared.get("training", {}).pop(without_effect, None)
    text = json.dumps([shared, adapter.model_dump(mode="json", exclude_defaults=True)], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def _recorded(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record
