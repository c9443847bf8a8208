"""Tune the trainable parameters of a model on tokenised rows: transformers' Trainer, loss on responses only.

Logits are computed at label positions alone, batches are grouped by length, router and experts may learn at
rates of their own. Any `accelerate launch` setting works, since the loop is the Trainer's.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from kshot.attention import training_attention
from kshot.batching import Batch, label_logits, pad_left
from kshot.config import TrainingConfig
from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.mixture import is_router_parameter, router_loss
from kshot.prompts import TokenisedExample
from kshot.tracking import check_tracker, logging_into


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training run did.

    Attributes:
        losses: Mean loss per target token, in nats, of each optimiser step.
        num_rows: Rows of one epoch.
        num_tokens: Tokens seen, prompts included, all epochs that were trained.
        trainable_parameters: Number of trained weights.
        seconds: Wall time.
    """

    losses: list[float]
    num_rows: int
    num_tokens: int
    trainable_parameters: int
    seconds: float


def fit(
    lm: LanguageModel,
    rows: Sequence[TokenisedExample],
    settings: TrainingConfig,
    *,
    seed: int = 0,
    checkpoints: Path | None = None,
    logs: Path | None = None,
    run_name: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainingResult:
    """Train `lm.model` in place.

    Args:
        lm: Its model must have trainable parameters, such as a PeftModel's.
        rows: Tokenised examples; the loss is the mean over their target tokens.
        settings: Rates, epochs, batch sizes.
        seed: Of the order of rows and of dropout.
        checkpoints: Folder for a checkpoint after each epoch; a killed run goes on from the last one.
        logs: Folder for the files of `settings.report_to`; see `kshot.tracking`.
        run_name: What the tracker calls the run.
        callbacks: For example a progress bar.

    Raises:
        ConfigError: There are no rows, or nothing is trainable.
        MissingExtraError: The package that `settings.report_to` names is not installed.
    """
    trainable = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    if not rows or not trainable:
        raise ConfigError(
            f"expected rows and trainable parameters, got {len(rows)} rows and {len(trainable)} parameters"
        )
    check_tracker(settings.report_to)
    started = time.monotonic()
    with TemporaryDirectory() as scratch, logging_into(settings.report_to, logs):
        trainer = _trainer(lm, rows, settings, seed, checkpoints, scratch, run_name)
        for callback in callbacks:
            trainer.add_callback(callback)
        with training_attention(lm.model, settings.per_device_train_batch_size, max(map(len, rows))):
            trainer.train(resume_from_checkpoint=_last_whole(checkpoints) if checkpoints else None)
    lm.model.eval()
    return TrainingResult(
        losses=[entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        num_rows=len(rows),
        num_tokens=round(sum(len(row) for row in rows) * (trainer.state.epoch or settings.num_train_epochs)),
        trainable_parameters=sum(parameter.numel() for parameter in trainable),
        seconds=time.monotonic() - started,
    )


def _trainer(
    lm: LanguageModel,
    rows: Sequence[TokenisedExample],
    settings: TrainingConfig,
    seed: int,
    checkpoints: Path | None,
    scratch: str,
    run_name: str | None,
) -> "ResponseTrainer":
    return ResponseTrainer(
        model=lm.model,
        args=_arguments(settings, seed, str(checkpoints or scratch), run_name, keep=checkpoints is not None),
        train_dataset=[{"row": row, "input_ids": row.input_ids} for row in rows],
        data_collator=_Collator(lm.pad_id),
        optimizers=(torch.optim.AdamW(parameter_groups(lm.model, settings)), None),
    )


def _last_whole(checkpoints: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; the Trainer writes the state file last."""
    found = sorted(
        checkpoints.glob("checkpoint-*/trainer_state.json"),
        key=lambda path: int(path.parent.name.rpartition("-")[2]),
    )
    whole = [path.parent for path in found if _is_json(path)]
    return str(whole[-1]) if whole else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def parameter_groups(model: nn.Module, settings: TrainingConfig) -> list[dict[str, Any]]:
    """Split the trainable parameters into router and rest, each with its learning rate and weight decay."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = {False: settings.learning_rate, True: settings.router_learning_rate or settings.learning_rate}
    groups = [
        {
            "params": [parameter for name, parameter in named if is_router_parameter(name) == routers],
            "lr": rate,
            "weight_decay": settings.weight_decay,
        }
        for routers, rate in rates.items()
    ]
    return [group for group in groups if group["params"]]


class ResponseTrainer(Trainer):
    """A Trainer whose loss needs the logits of the response only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.remove_callback(PrinterCallback)  # the caller decides what is shown
        configs = getattr(self.model, "peft_config", {}).values()
        self.has_router_loss = any(getattr(config, "keeps_logits", False) for config in configs)
        # The loss is a sum over the tokens of the whole accumulated batch.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the summed NLL of the targets over the number of targets in the accumulated batch."""
        batch = Batch(**inputs)
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logits_LV = label_logits(model, batch, head=head)
        items = batch.targets_L.numel() if num_items_in_batch is None else num_items_in_batch
        loss: Tensor = cross_entropy(logits_LV.float(), batch.targets_L, reduction="sum") / items
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes afterwards
        if self.has_router_loss:  # a mean over tokens already, and the micro-batches' losses are summed
            loss = loss + router_loss(model, batch.attention_mask) / self.current_gradient_accumulation_steps
        return loss


class _Collator:
    """Left-pads rows; a class, so that worker processes can be sent it."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = pad_left([item["row"] for item in items], self.pad_id, torch.device("cpu"))
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def _arguments(
    settings: TrainingConfig, seed: int, output_dir: str, run_name: str | None, *, keep: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=output_dir,
        run_name=run_name,
        project="kshot",
        seed=seed,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,
        max_grad_norm=settings.max_grad_norm,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        save_strategy="epoch" if keep else "no",
        save_total_limit=1,
        logging_steps=1,
        report_to=settings.report_to,
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        activation_checkpointing=settings.gradient_checkpointing,
    )
