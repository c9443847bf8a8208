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
tuned on the task's shots and on selected open rows.

| expert | licence | trained on | origin |
|---|---|---|---|
{experts}

```python
import kshot, peft, transformers

base = transformers.AutoModelForCausalLM.from_pretrained("path of {base_model}")
model = peft.PeftModel.from_pretrained(base, "path of this folder")
```
"""


def mixture_card(task: TaskConfig, experts: Sequence[str], bank: Bank) -> str:
    """Return the model card.

    Args:
        task: The task that it was tuned for.
        experts: Names of the adapters it started from.
        bank: Where these are described.
    """
    entries = [bank[name].entry for name in experts]
    what = (
        f"a mixture of {len(experts)} LoRA experts behind a token-wise top-{task.mixture.top_k} router"
        if len(experts) > 1
        else "one LoRA adapter"
    )
    rows = [
        f"| {one.name} | {one.licence} | {one.trained_on or 'unknown'} | {one.origin} |" for one in entries
    ]
    return _CARD.format(name=task.name, base_model=task.base_model, what=what, experts="\n".join(rows))
