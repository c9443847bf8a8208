"""The model card of a tuned expert: what it is made of, with origins and licences."""

from collections.abc import Sequence

from kshot.bank import Bank
from kshot.config import TaskConfig

_CARD = """---
base_model: {base_model}
library_name: peft
tags: [kshot, mixture-of-loras]
---

# {name}

A task expert made by kshot (method: arXiv 2408.15915) on `{base_model}`: {what},
{tuning}.{trained_under}{handed_over}

| expert | licence | trained on | origin |
|---|---|---|---|
{experts}

```python
import kshot, peft, transformers

base = transformers.AutoModelForCausalLM.from_pretrained("path of {base_model}"{loading})
model = peft.PeftModel.from_pretrained(base, "path of this folder")
```
"""

_TUNED = "tuned on the task's shots and on selected open rows"
_QUANTISED = """
The weights of the base were in {bits} bits while it was tuned and measured; on a base of other precision it
computes something else, so load it as shown."""
_LOADING = {
    "none": "",
    "8bit": ", quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)",
    "4bit": (
        ", quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True, "
        'bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)'
    ),
}


def mixture_card(
    task: TaskConfig,
    experts: Sequence[str],
    bank: Bank,
    *,
    untuned: str | None = None,
    handed_over: str | None = None,
) -> str:
    """Return the model card.

    Args:
        task: The task that it was tuned for.
        experts: Names of the adapters it started from.
        bank: Where these are described.
        untuned: Of adapters that are handed over as they are, in equal parts: why.
        handed_over: Which arm the run hands over and why, a sentence; None before that is known.
    """
    entries = [bank[name].entry for name in experts]
    router = f"behind a token-wise top-{task.mixture.top_k} router" if untuned is None else "in equal parts"
    what = f"a mixture of {len(experts)} LoRA experts {router}" if len(experts) > 1 else "one LoRA adapter"
    rows = [
        f"| {one.name} | {one.licence} | {one.trained_on or 'unknown'} | {one.origin} |" for one in entries
    ]
    kind = task.quantization
    return _CARD.format(
        name=task.name,
        base_model=task.base_model,
        what=what,
        tuning=_TUNED if untuned is None else f"as it is: {untuned}",
        experts="\n".join(rows),
        trained_under="" if kind == "none" else _QUANTISED.format(bits=kind.removesuffix("bit")),
        handed_over="" if handed_over is None else f"\n\n{handed_over}",
        loading=_LOADING[kind],
    )
