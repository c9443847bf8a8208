"""Stages `single` and `expert`: tune the best single expert, and the mixture, on shots and selected rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kshot.atomic import write_json, write_text
from kshot.config import TrainingConfig
from kshot.events import METRICS_SECONDS, Event, Seldom
from kshot.examples import Example, read_examples
from kshot.experts import attached
from kshot.mixture import LoraExpert
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.model_card import mixture_card
from kshot.progress import Advance
from kshot.prompts import TokenisedExample, form_of
from kshot.run_folder import ADAPTER, LOGS, SELECTED, SELECTION, TRAINING, RunFolder, digest
from kshot.training import TrainingResult, fit

TrainedStage = Literal["single", "expert"]


def trained_stages(inputs: Inputs) -> tuple[TrainedStage, ...]:
    """Return what is trained: the single expert only where it is measured, or may be handed over."""
    alone = not inputs.test and not inputs.task.evaluation.fold_single
    return ("expert",) if alone else ("single", "expert")


def training_reads(inputs: Inputs, run: RunFolder, stage: TrainedStage) -> str:
    """Return the hash of what a training stage reads."""
    task = inputs.task
    own = task.mixture.model_dump() if stage == "expert" else None
    settings = [task.training.model_dump(exclude={"report_to"}), task.trains_on_rationales, own, task.seed]
    return digest([run.wrote("experts"), run.wrote("data"), settings])


def run_training(inputs: Inputs, run: RunFolder, stage: TrainedStage, folder: Path) -> None:
    """Train one arm and write its adapter, model card and losses.

    Checkpoints lie beside the stage until it is finished, so that a killed run goes on from its last epoch.
    """
    task = inputs.task
    version = training_reads(inputs, run, stage)[:12]
    with tuned(
        inputs,
        run,
        stage,
        training_rows(inputs, run, inputs.shots),
        task.training,
        checkpoints=run.path(f".{stage}.checkpoints-{version}"),
        logs=run.path(LOGS, f"{stage}-{version}"),
        run_name=f"{task.name}-{stage}-{version}",
        callbacks=[_Metrics(run.event)],
    ) as result:
        save_adapter(inputs, folder / ADAPTER)
    write_json(folder / TRAINING, asdict(result) | {"seconds": round(result.seconds, 1)})
    write_text(folder / ADAPTER / "README.md", mixture_card(task, chosen_names(run, stage), inputs.bank))


@contextmanager
def tuned(
    inputs: Inputs,
    run: RunFolder,
    stage: TrainedStage,
    rows: Sequence[TokenisedExample],
    settings: TrainingConfig,
    *,
    beside: str = "",
    callbacks: Sequence[TrainerCallback] = (),
    **options: Any,
) -> Iterator[TrainingResult]:
    """Train what a stage trains and yield what that was; `inputs.lm` is tuned until the block ends.

    Args:
        inputs: Of the run.
        run: Whose selection names the experts.
        stage: `single` or `expert`.
        rows: To train on.
        settings: Rates, epochs, batch sizes.
        beside: Added to what the progress bar says.
        callbacks: Of the Trainer, beside the bar's own.
        options: As `fit`.
    """
    micro_batches = -(-len(rows) // settings.per_device_train_batch_size)
    steps = -(-micro_batches // settings.gradient_accumulation_steps)
    experts = chosen_experts(inputs, run, stage)
    torch.manual_seed(inputs.task.seed)
    with attached(inputs.lm, experts, **_mixture_options(inputs, run, stage)):
        with inputs.progress.bar(
            _TITLES[stage] + beside, math.ceil(steps * settings.num_train_epochs)
        ) as advance:
            result = fit(
                inputs.lm,
                rows,
                settings,
                seed=inputs.task.seed,
                callbacks=[_Steps(advance), *callbacks],
                **options,
            )
        yield result


def save_adapter(inputs: Inputs, folder: Path) -> None:
    """Write what is on the base model now as a PEFT folder that names the base as the task does."""
    model = inputs.lm.model
    model.peft_config["default"].base_model_name_or_path = inputs.task.base_model  # type: ignore[index, union-attr]
    model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]


_TITLES: dict[TrainedStage, str] = {"single": "tuning the best single expert", "expert": "tuning the mixture"}


def chosen_names(run: RunFolder, stage: TrainedStage) -> list[str]:
    """Return what the experts of an arm are called: the best single one, or the group."""
    selection = run.read_json("experts", SELECTION)
    return [selection["best_single"]] if stage == "single" else list(selection["experts"])


def chosen_experts(inputs: Inputs, run: RunFolder, stage: TrainedStage) -> dict[str, LoraExpert]:
    """Return the experts of an arm."""
    return {name: inputs.bank[name].load() for name in chosen_names(run, stage)}


def training_rows(inputs: Inputs, run: RunFolder, shots: Sequence[Example]) -> list[TokenisedExample]:
    """Return these shots, repeated as the task says, and the selected rows as token ids."""
    task = inputs.task
    selected = read_examples(run.path("data", SELECTED)) if task.data.budget else []
    form = form_of(task.scorer, listed=task.lists_options)
    return [
        inputs.lm.template.encode_example(
            example, form, rationale=task.trains_on_rationales, max_length=task.training.max_length
        )
        for example in [*list(shots) * task.training.shot_repeats, *selected]
    ]


def _mixture_options(inputs: Inputs, run: RunFolder, stage: TrainedStage) -> dict[str, Any]:
    if stage == "single":
        return {"gates": [1.0]}
    options = inputs.task.mixture.model_dump() | {"seed": inputs.task.seed}
    if options["router_start"] == "scores":
        selection = run.read_json("experts", SELECTION)
        nll = {one["name"]: one["mean_nll"] for one in selection["candidates"]}
        scores = {name: -nll[name] for name in selection["experts"]}
        options |= {"router_start": "random", "expert_scores": scores}
    return options


class _Steps(TrainerCallback):
    """Moves a progress bar with every optimiser step."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Advance by one step."""
        self._advance(1)


class _Metrics(TrainerCallback):
    """Writes loss, rate and gradient norm to the events at a bounded rate, and those of the last step."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self._due = Seldom(METRICS_SECONDS)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Write the metrics of a step."""
        if not logs or "loss" not in logs:
            return
        if self._due.is_due() or state.global_step == state.max_steps:
            measured = {name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs}
            self._event(
                "metrics", step=state.global_step, steps=state.max_steps, epoch=state.epoch, **measured
            )
