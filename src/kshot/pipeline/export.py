"""The expert of a finished run as a plain LoRA, with what that costs on the run's own rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from torch import Tensor

from kshot.atomic import new_folder
from kshot.batching import pad_left, position_ids
from kshot.config import read_task
from kshot.errors import ConfigError, RunFolderError
from kshot.language_model import LanguageModel
from kshot.mixture import export_lora
from kshot.mixture.export import EXPORT_REPORT
from kshot.mixture.model import mixture_config
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.training_stage import training_rows
from kshot.progress import Progress, Silent
from kshot.prompts import TokenisedExample
from kshot.run_folder import ADAPTER, CONFIG, RunFolder

ROWS_PER_BATCH = 8  # as many as the demo trains on at once


@dataclass(frozen=True, slots=True)
class Exported:
    """A plain LoRA made of a run's expert.

    Attributes:
        folder: The PEFT LoRA folder.
        loss: What the mean routing costs, as in `kshot.mixture.constant_gates_loss`; None if it is exact.
    """

    folder: Path
    loss: dict[str, Any] | None


def export_expert(run: str | Path, out: str | Path, *, progress: Progress | None = None) -> Exported:
    """Export the tuned mixture of a run, its router replaced by its mean routing of the training rows.

    Args:
        run: A run folder whose training is finished.
        out: Made new.
        progress: Where to say what takes long.

    Raises:
        RunFolderError: There is no finished expert.
        ConfigError: `out` exists.
    """
    folder, out = RunFolder.existing(run), Path(out)
    adapter = folder.path("expert", ADAPTER)
    if not adapter.is_dir():
        raise RunFolderError(
            f"expected a trained expert in {adapter}, found none: finish it with 'kshot run'"
        )
    if out.exists():
        raise ConfigError(f"expected a new folder, got {out}, which exists; choose another or remove it")
    inputs = Inputs(read_task(folder.path(CONFIG)), progress or Silent())
    lm = inputs.lm
    rows = training_rows(inputs, folder)
    model = peft.PeftModel.from_pretrained(lm.model, str(adapter)).eval()
    batches = [
        _inputs(lm, rows[start : start + ROWS_PER_BATCH]) for start in range(0, len(rows), ROWS_PER_BATCH)
    ]
    routed = mixture_config(model, "default").fixed_gates is None
    with new_folder(out) as draft:
        export_lora(model, draft, batches=batches if routed else None)
    report = json.loads((out / EXPORT_REPORT).read_text(encoding="utf-8"))
    return Exported(out, report["loss"])


def _inputs(lm: LanguageModel, rows: Sequence[TokenisedExample]) -> dict[str, Tensor]:
    batch = pad_left(rows, lm.pad_id, lm.device)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": position_ids(batch.attention_mask),
        "labels": batch.labels,
    }
