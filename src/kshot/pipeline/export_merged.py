"""The expert of a finished run merged into its base: a full model for tools that know no adapters."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from torch import nn

from kshot.atomic import new_folder, write_json, write_text
from kshot.language_model import LanguageModel
from kshot.mixture import constant_gates, constant_gates_loss, mean_gates
from kshot.mixture.export import EXPORT_REPORT
from kshot.mixture.folder import CARD_NAME
from kshot.pipeline.export import OpenedExpert, open_expert
from kshot.pipeline.export_card import export_card
from kshot.progress import Progress


@dataclass(frozen=True, slots=True)
class Merged:
    """A full model made of a run's expert.

    Attributes:
        folder: Model and tokenizer, as transformers saves them.
        loss: What the mean routing costs, as in `kshot.mixture.constant_gates_loss`; None if the gates are
            fixed.
        nll: Mean NLL of the training rows' targets in nats a token, before the merge and after it: the
            rounding to the base's dtype is in the second.
    """

    folder: Path
    loss: dict[str, Any] | None
    nll: tuple[float, float]


def export_merged(run: str | Path, out: str | Path, *, progress: Progress | None = None) -> Merged:
    """Merge the expert of a run into its base: exact for fixed gates, else by the mean routing.

    Arguments are those of `export_expert`.

    Raises:
        AdapterError: The base is quantised, so that nothing can be added to its weights.
        KshotError: As `export_expert`.
    """
    opened = open_expert(run, out, progress=progress)
    names, before = opened.expert_names, _mean_nll(opened, opened.model)
    gates = mean_gates(opened.model, opened.batches()) if opened.is_routed else None
    loss = asdict(constant_gates_loss(opened.model, gates, opened.batches())) if gates else None
    merged = _merge(opened.model, gates)
    after = _mean_nll(opened, merged)
    with new_folder(Path(out)) as draft:
        merged.save_pretrained(str(draft))
        opened.inputs.lm.tokenizer.save_pretrained(str(draft))
        report = {
            "exact": gates is None,
            "gates": gates,
            "loss": loss,
            "nll": {"mixture": before, "merged": after},
        }
        write_json(draft / EXPORT_REPORT, report)
        write_text(draft / CARD_NAME, export_card(opened.inputs, names, "merged", loss, after))
    return Merged(Path(out), loss, (before, after))


def _merge(model: PeftModel, gates: Mapping[str, list[float]] | None) -> Any:
    with constant_gates(model, gates) if gates else nullcontext():
        return model.merge_and_unload()


def _mean_nll(opened: OpenedExpert, model: nn.Module) -> float:
    lm = LanguageModel(model, opened.inputs.lm.tokenizer)
    return float(np.concatenate(lm.token_nll(opened.rows)).mean())
