"""Stages `single` and `expert`: tune the best single expert, and the mixture, on shots and selected rows."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kshot.atomic import write_json, write_text
from kshot.events import METRICS_SECONDS, Event, Seldom
from kshot.examples import read_examples
from kshot.experts import attached
from kshot.mixture import LoraExpert
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.model_card import mixture_card
from kshot.progress import Advance
from kshot.prompts import TokenisedExample, form_of
from kshot.run_folder import ADAPTER, LOGS, SELECTED, SELECTION, TRAINING, RunFolder, Stage, digest
from kshot.training import fit


def training_reads(inputs: Inputs, run: RunFolder, stage: Stage) -> str:
    """Return the hash of what a training stage reads."""
    task = inputs.task
    own = task.mixture.model_dump() if stage == "expert" else None
    settings = [task.training.model_dump(exclude={"report_to"}), task.trains_on_rationales, own, task.seed]
    return digest([run.wrote("experts"), run.wrote("data"), settings])


def run_training(inputs: Inputs, run: RunFolder, stage: Stage, folder: Path) -> None:
    """Train one arm and write its adapter, model card and losses.

    Checkpoints lie beside the stage until it is finished, so that a killed run goes on from its last epoch.
    """
    task, lm = inputs.task, inputs.lm
    rows = training_rows(inputs, run)
    version = training_reads(inputs, run, stage)[:12]
    checkpoints = run.path(f".{stage}.checkpoints-{version}")
    steps = -(
        -len(rows) // (task.training.per_device_train_batch_size * task.training.gradient_accumulation_steps)
    )
    experts = chosen_experts(inputs, run, stage)
    torch.manual_seed(task.seed)
    with attached(lm, experts, **_mixture_options(inputs, run, stage)):
        with inputs.progress.bar(_TITLES[stage], round(steps * task.training.num_train_epochs)) as advance:
            result = fit(
                lm,
                rows,
                task.training,
                seed=task.seed,
                checkpoints=checkpoints,
                logs=run.path(LOGS, f"{stage}-{version}"),
                run_name=f"{task.name}-{stage}-{version}",
                callbacks=[_Steps(advance), _Metrics(run.event)],
            )
        lm.model.peft_config["default"].base_model_name_or_path = task.base_model  # type: ignore[index, union-attr]
        lm.model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)  # type: ignore[operator]
    write_json(folder / TRAINING, asdict(result) | {"seconds": round(result.seconds, 1)})
    write_text(folder / ADAPTER / "README.md", mixture_card(task, list(experts), inputs.bank))


_TITLES = {"single": "tuning the best single expert", "expert": "tuning the mixture"}


def chosen_experts(inputs: Inputs, run: RunFolder, stage: Stage) -> dict[str, LoraExpert]:
    """Return the experts of an arm: the best single one, or the group."""
    selection = run.read_json("experts", SELECTION)
    names = [selection["best_single"]] if stage == "single" else selection["experts"]
    return {name: inputs.bank[name].load() for name in names}


def training_rows(inputs: Inputs, run: RunFolder) -> list[TokenisedExample]:
    """Return shots and selected rows as token ids."""
    task = inputs.task
    selected = read_examples(run.path("data", SELECTED)) if task.data.budget else []
    form = form_of(task.scorer, listed=task.lists_options)
    return [
        inputs.lm.template.encode_example(
            example, form, rationale=task.trains_on_rationales, max_length=task.training.max_length
        )
        for example in [*inputs.shots * task.training.shot_repeats, *selected]
    ]


def _mixture_options(inputs: Inputs, run: RunFolder, stage: Stage) -> dict[str, Any]:
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
