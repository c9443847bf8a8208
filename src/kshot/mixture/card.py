"""The model card of a saved mixture: its experts, where they came from, under which licences."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import CardData, ModelCard

from kshot.mixture.expert import ExpertOrigin
from kshot.mixture.folder import CARD_NAME

if TYPE_CHECKING:
    from kshot.mixture.config import MixtureConfig

_TAGS = ("kshot", "mixture-of-loras")
_BASE_TAG = "base_model:adapter:"  # PEFT's tag, with whatever the base was loaded from behind it
_PEFT_PLACEHOLDER = "[More Information Needed]"  # in the card that PEFT writes with every adapter
_OURS = "<!-- written with the mixture; remove this line to keep your own text -->"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def write_card(config: "MixtureConfig", folder: Path) -> None:
    """Write the card beside a saved mixture; of one that somebody wrote, only paths are taken out.

    Front matter that is there already, such as PEFT's, is kept, but for paths of this machine.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        card = ModelCard("---\nlibrary_name: peft\n---\n" + _OURS)
    else:
        try:
            card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        except (ValueError, yaml.YAMLError):  # not PEFT's, which is whole
            return
    before = card.content
    _name_base(card.data, config.base_model_name_or_path)
    if _PEFT_PLACEHOLDER in card.text or _OURS in card.text:
        card.data["tags"] = list(dict.fromkeys([*_strings(card.data, "tags"), *_TAGS]))
        card.text = f"\n{card_text(config)}"
    elif card.content == before:
        return
    path.write_text(card.content, encoding="utf-8")


def _name_base(data: CardData, base_model: str | None) -> None:
    """Name the base by its Hub id; where it was loaded from on this machine means nothing elsewhere."""
    names = _strings(data, "base_model")
    if not names or not all(_is_hub_id(name) for name in names):
        names = [base_model] if base_model is not None and _is_hub_id(base_model) else []
    data["base_model"] = (names[0] if len(names) == 1 else names) or None
    tags = _strings(data, "tags")
    kept = [tag for tag in tags if not tag.startswith(_BASE_TAG) or _is_hub_id(tag.removeprefix(_BASE_TAG))]
    if kept != tags:
        data["tags"] = kept


def _strings(data: CardData, key: str) -> list[str]:
    value = data.get(key) or []
    return [value] if isinstance(value, str) else list(value)


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def card_text(config: "MixtureConfig") -> str:
    """Return the card without its front matter."""
    extras = [f"a LoRA of rank {config.shared_r} that is always on"] if config.shared_r else []
    extras += ["the choice of no expert"] if config.null_expert else []
    beside = f", with {' and '.join(extras)}" if extras else ""
    origins: Sequence[ExpertOrigin | None] = config.expert_origins or [None] * config.num_experts
    lines = [
        "# A mixture of LoRA experts",
        "",
        _OURS,
        "",
        f"{config.num_experts} LoRA experts behind {_gating(config)}{beside}.",
        "",
        "| expert | from | licence | note |",
        "|---|---|---|---|",
        *(_row(name, origin) for name, origin in zip(config.expert_names, origins, strict=True)),
        "",
        "```python",
        "import kshot.mixture, peft  # makes the adapter's type known",
        "",
        "model = peft.PeftModel.from_pretrained(base_model, folder)",
        "```",
        "",
    ]
    return "\n".join(lines)


def _gating(config: "MixtureConfig") -> str:
    if config.fixed_gates is not None:
        return f"constant gates {', '.join(f'{gate:.3g}' for gate in config.fixed_gates)}"
    return (
        f"a router in every {config.router_scope} that gives each {config.router_granularity} "
        f"the best {config.top_k} of {config.num_choices}"
    )


def _row(name: str, origin: ExpertOrigin | None) -> str:
    cells = [name, "unknown", "unknown", ""]
    if origin is not None:
        cells[1:3] = [origin["source"], origin["licence"] or "unknown"]
        if origin["converted_from"]:
            error = origin["conversion_error"]
            lost = "" if error is None else f", relative error {error:.2g}"
            cells[3] = f"converted from {origin['converted_from']}{lost}"
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
