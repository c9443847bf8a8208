"""The expert of a finished run as a plain LoRA, with what that costs on the run's own rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from torch import Tensor

from kshot.atomic import new_folder, write_text
from kshot.batching import pad_left, position_ids
from kshot.config import read_task
from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.mixture import export_lora
from kshot.mixture.export import EXPORT_REPORT
from kshot.mixture.folder import CARD_NAME
from kshot.mixture.model import mixture_config
from kshot.pipeline.export_card import export_card
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.training_stage import training_rows
from kshot.progress import Progress, Silent
from kshot.prompts import TokenisedExample
from kshot.run_folder import CONFIG, RunFolder, adapter_to_use

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


@dataclass(frozen=True, slots=True)
class OpenedExpert:
    """The expert of a run on its base model, with the rows that it was trained on.

    Attributes:
        inputs: What the run started from.
        model: Base and mixture, to be evaluated.
        rows: Its training rows, to take the mean routing of and to measure on.
    """

    inputs: Inputs
    model: peft.PeftModel
    rows: list[TokenisedExample]

    @property
    def expert_names(self) -> list[str]:
        """What the mixture is made of."""
        return list(mixture_config(self.model, "default").expert_names)

    @property
    def is_routed(self) -> bool:
        """Whether a router decides, so that no single weight is the same."""
        return mixture_config(self.model, "default").fixed_gates is None

    def batches(self) -> list[dict[str, Tensor]]:
        """Return the rows as the model's forward takes them."""
        starts = range(0, len(self.rows), ROWS_PER_BATCH)
        return [_inputs(self.inputs.lm, self.rows[start : start + ROWS_PER_BATCH]) for start in starts]


def open_expert(run: str | Path, out: str | Path, *, progress: Progress | None = None) -> OpenedExpert:
    """Load the expert of a run, to be exported; arguments and errors are those of `export_expert`."""
    folder = RunFolder.existing(run)
    adapter = adapter_to_use(folder)
    if Path(out).exists():
        raise ConfigError(f"expected a new folder, got {out}, which exists; choose another or remove it")
    inputs = Inputs(read_task(folder.path(CONFIG)), progress or Silent())
    rows = training_rows(inputs, folder, inputs.shots)
    model = peft.PeftModel.from_pretrained(inputs.lm.model, str(adapter)).eval()
    return OpenedExpert(inputs, model, rows)


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
    opened = open_expert(run, out, progress=progress)
    with new_folder(Path(out)) as draft:
        loss = write_lora(opened, draft)
        write_text(draft / CARD_NAME, export_card(opened.inputs, opened.expert_names, "lora", loss))
    return Exported(Path(out), loss)


def write_lora(opened: OpenedExpert, folder: Path) -> dict[str, Any] | None:
    """Write an opened expert as a plain LoRA; return what its mean routing costs, None if it is exact."""
    export_lora(opened.model, folder, batches=opened.batches() if opened.is_routed else None)
    report = json.loads((folder / EXPORT_REPORT).read_text(encoding="utf-8"))
    loss: dict[str, Any] | None = report["loss"]
    return loss


def _inputs(lm: LanguageModel, rows: Sequence[TokenisedExample]) -> dict[str, Tensor]:
    batch = pad_left(rows, lm.pad_id, lm.device)
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": position_ids(batch.attention_mask),
        "labels": batch.labels,
    }
