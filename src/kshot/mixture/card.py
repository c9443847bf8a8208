"""The model card of a saved mixture: its experts, where they came from, under which licences."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

if TYPE_CHECKING:
    from kshot.mixture.config import MixtureConfig

CARD = "README.md"
_PEFT_PLACEHOLDER = "[More Information Needed]"  # in the card that PEFT writes with every adapter
_OWN = "<!-- written with the mixture; remove this line to keep your own text -->"


def write_card(config: "MixtureConfig", folder: Path) -> None:
    """Write the card beside a saved mixture, unless somebody wrote one of their own.

    Front matter that is there already, such as PEFT's, is kept.
    """
    path = folder / CARD
    data = ModelCardData(library_name="peft", tags=["kshot", "mixture-of-loras"])
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if _PEFT_PLACEHOLDER not in text and _OWN not in text:
            return
        data = ModelCard(text, ignore_metadata_errors=True).data
    base_model = config.base_model_name_or_path
    if base_model and not Path(base_model).exists():  # a folder of this machine means nothing elsewhere
        data.base_model = base_model
    else:
        data.base_model = None
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{card_text(config)}", encoding="utf-8")


def card_text(config: "MixtureConfig") -> str:
    """Return the card without its front matter."""
    how = (
        f"a router that gives each {config.router_granularity} the best {config.top_k} of {config.num_choices}"
        if config.fixed_gates is None
        else f"constant gates {', '.join(f'{gate:.3g}' for gate in config.fixed_gates)}"
    )
    extras = [f"a LoRA of rank {config.shared_r} that is always on"] if config.shared_r else []
    extras += ["the choice of no expert"] if config.null_expert else []
    origins = config.expert_origins or [None] * config.num_experts
    rows = []
    for name, origin in zip(config.expert_names, origins, strict=True):
        if origin is None:
            rows.append(f"| {name} | unknown | unknown | |")
            continue
        note = ""
        if origin["converted_from"]:
            note = f"converted from {origin['converted_from']}, relative error {origin['conversion_error']:.2g}"
        rows.append(f"| {name} | {origin['source']} | {origin['licence'] or 'unknown'} | {note} |")
    lines = [
        "# A mixture of LoRA experts",
        "",
        _OWN,
        "",
        f"{config.num_experts} LoRA experts behind {how}{', with ' + ' and '.join(extras) if extras else ''}.",
        "",
        "| expert | from | licence | note |",
        "|---|---|---|---|",
        *rows,
        "",
        "```python",
        "import kshot.mixture, peft  # makes the adapter's type known",
        "",
        "model = peft.PeftModel.from_pretrained(base_model, folder)",
        "```",
        "",
    ]
    return "\n".join(lines)
