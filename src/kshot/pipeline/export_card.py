"""The model card of an exported expert: what it is, how far it is from the mixture, whose work is in it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kshot.mixture.mean_routing import ConstantGatesLoss
from kshot.pipeline.inputs import Inputs

Form = Literal["lora", "merged", "gguf"]

_CARD = """---
base_model: {base_model}
{library}tags: [kshot]
---

# {name}

{what}, made by kshot (method: arXiv 2408.15915) of {count} tuned for this task.
{difference}

| expert | licence | trained on | origin |
|---|---|---|---|
{experts}

{use}
"""
_WHAT = {
    "lora": "A LoRA adapter of `{base_model}`",
    "merged": "A full model, `{base_model}` with the expert merged into its weights",
    "gguf": "A LoRA adapter of `{base_model}` for llama.cpp",
}
_LIBRARY = {"lora": "library_name: peft\n", "merged": "library_name: transformers\n", "gguf": ""}
_USE = {
    "lora": "vLLM, PEFT and other tools load it as any LoRA: `vllm serve BASE --enable-lora "
    "--max-lora-rank R --lora-modules NAME=FOLDER`, R at least the `r` of `adapter_config.json`.",
    "merged": "transformers loads it as any model: `AutoModelForCausalLM.from_pretrained(FOLDER)`.",
    "gguf": "`llama-server -m BASE.gguf --lora adapter.gguf`, with a GGUF of the same base.",
}


def export_card(
    inputs: Inputs,
    experts: Sequence[str],
    form: Form,
    loss: Mapping[str, Any] | None,
    merged_nll: float | None = None,
) -> str:
    """Return the model card.

    Args:
        inputs: What the run started from.
        experts: Names of the adapters that the mixture is made of.
        form: What was written.
        loss: What constant gates cost in place of the router; None if nothing.
        merged_nll: Mean NLL of the merged weights on the training rows, in nats a token, rounding included.
    """
    task, bank = inputs.task, inputs.bank
    entries = [bank[name].entry for name in experts]
    rows = [
        f"| {one.name} | {one.licence} | {one.trained_on or 'unknown'} | {one.origin} |" for one in entries
    ]
    count = f"a mixture of {len(experts)} LoRA experts" if len(experts) > 1 else "a LoRA expert"
    return _CARD.format(
        base_model=task.base_model,
        library=_LIBRARY[form],
        name=task.name,
        what=_WHAT[form].format(base_model=task.base_model),
        count=count,
        difference=_difference(loss, merged_nll),
        experts="\n".join(rows),
        use=_USE[form],
    )


def _difference(loss: Mapping[str, Any] | None, merged_nll: float | None) -> str:
    if loss is None:
        said = "It computes what the tuned expert computes, up to rounding."
    else:
        said = (
            "Each module's mean gates stand in for the router. On the training rows that changes "
            f"{ConstantGatesLoss(**loss)}."
        )
    rounded = "" if merged_nll is None else f" As merged, in the base's precision: NLL {merged_nll:.4f}."
    return said + rounded
