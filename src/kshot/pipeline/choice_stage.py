"""Stage `choice`: which arm the run hands over, judged on folds of the shots that it was not trained on."""

import time
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from kshot.atomic import write_json, write_text
from kshot.config import SHOTS_FOR_FOLDS
from kshot.errors import ConfigError
from kshot.experts.arm_choice import choose_arm
from kshot.experts.held_out import UNITS, HeldOutLoss, loss_measure
from kshot.pipeline.arms import ARMS, TUNED, Arm, model_of
from kshot.pipeline.folds import deal, losses_on_folds
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.model_card import mixture_card
from kshot.pipeline.training_stage import TrainedStage, chosen_names, save_adapter
from kshot.run_folder import ADAPTER, CHOICE, HELD_OUT, RunFolder, digest

_MADE_OF: dict[Arm, TrainedStage] = {"best_single": "single", "uniform_mixture": "expert"}


def check_folds(inputs: Inputs) -> None:
    """Refuse more folds than there are shots.

    Raises:
        ConfigError: There are.
    """
    folds, num_shots = inputs.task.evaluation.num_folds(len(inputs.shots)), len(inputs.shots)
    if folds > num_shots:
        raise ConfigError(
            f"evaluation.folds must be at most {num_shots}, the number of shots, got {folds}: lower it, or "
            "set it to 0"
        )


def choice_reads(inputs: Inputs, run: RunFolder) -> str:
    """Return the hash of what this stage reads: all that training does, and how it is judged."""
    settings = inputs.task.evaluation
    folds = settings.num_folds(len(inputs.shots))
    judged = [settings.fold_epochs, settings.fold_single] if folds else []
    return digest([run.wrote("expert"), folds, judged])


def run_choice(inputs: Inputs, run: RunFolder, folder: Path) -> None:
    """Write what was chosen and why, each arm on each shot, and the adapter where no other stage holds it.

    The cards of the adapters that other stages hold are told of it.

    `kshot.experts.arm_choice` has the rule. It costs `evaluation.folds` trainings of the mixture, each with
    `evaluation.fold_epochs` of its epochs on the selected rows and the shots of the other folds.
    """
    started, shots = time.monotonic(), inputs.shots
    folds = inputs.task.evaluation.num_folds(len(shots))
    if folds:
        fold_of = deal(len(shots), folds, inputs.task.seed)
        found = losses_on_folds(inputs, run, fold_of, choice_reads(inputs, run))
        decided = _decide(inputs, found)
        held_out = [
            {
                "id": shot.id,
                "fold": fold_of[place] + 1,
                "arms": {arm: asdict(losses[place]) for arm, losses in found.items()},
            }
            for place, shot in enumerate(shots)
        ]
        write_json(folder / HELD_OUT, held_out)
    else:
        decided = {"chosen": "tuned_mixture", "reason": _why_unjudged(inputs), "unit": None, "arms": []}
    chosen: Arm = decided["chosen"]
    beside = {
        "title": ARMS[chosen],
        "folds": folds,
        "fold_epochs": inputs.task.evaluation.fold_epochs,
        "num_shots": len(shots),
        "expert": run.wrote("expert"),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(folder / CHOICE, decided | beside)
    if chosen in _MADE_OF:
        _write_adapter(inputs, run, chosen, decided["reason"], folder / ADAPTER)
    _tell_cards(inputs, run, chosen, decided["reason"])
    handed_over = "no adapter is handed over: the base model is best" if chosen == "base" else ARMS[chosen]
    inputs.progress.say(f"chosen: {handed_over}; {decided['reason']}")


def choice_made(run: RunFolder) -> dict[str, Any] | None:
    """Return what this stage wrote, without its time, which differs from run to run; None if it has not run.

    Raises:
        RunFolderError: It is damaged.
    """
    if not run.path("choice", CHOICE).is_file():
        return None
    choice: dict[str, Any] = run.read_json("choice", CHOICE)
    return {key: value for key, value in choice.items() if key != "seconds"}


def _decide(inputs: Inputs, found: dict[Arm, list[HeldOutLoss]]) -> dict[str, Any]:
    task = inputs.task
    unit = UNITS[loss_measure(task.scorer, listed=task.lists_options)]
    choice = choose_arm(
        {arm: [one.loss for one in losses] for arm, losses in found.items()},
        {str(arm): title for arm, title in ARMS.items()},
        preferred="tuned_mixture",
        safe="base",
        unit=unit,
    )
    arms = []
    for judged, (arm, losses) in zip(choice.arms, found.items(), strict=True):
        right = [one.correct for one in losses if one.correct is not None]
        arms.append(asdict(judged) | {"title": ARMS[arm], "accuracy": fmean(right) if right else None})
    return {"chosen": choice.chosen, "reason": choice.reason, "unit": unit, "arms": arms}


def _why_unjudged(inputs: Inputs) -> str:
    if inputs.task.evaluation.folds == 0:
        return "not compared with other arms, as evaluation.folds is 0"
    return (
        f"not compared with other arms, as {len(inputs.shots)} shots are too few to put some aside: from "
        f"{SHOTS_FOR_FOLDS} on it is done, or where evaluation.folds says so"
    )


def _tell_cards(inputs: Inputs, run: RunFolder, chosen: Arm, reason: str) -> None:
    """Let the card of each trained adapter say whether it is handed over."""
    for arm, stage in TUNED.items():
        adapter = run.path(stage, ADAPTER)
        if not adapter.is_dir():
            continue
        if arm == chosen:
            said = "Its run hands it over"
        elif chosen == "base":
            said = "Its run hands over no adapter but the base model as it is"
        else:
            said = f"Its run hands over another arm, the {ARMS[chosen]}"
        card = mixture_card(
            inputs.task, chosen_names(run, stage), inputs.bank, handed_over=f"{said}: {reason}."
        )
        write_text(adapter / "README.md", card)


def _write_adapter(inputs: Inputs, run: RunFolder, arm: Arm, reason: str, folder: Path) -> None:
    with model_of(inputs, run, arm):
        save_adapter(inputs, folder)
    names = chosen_names(run, _MADE_OF[arm])
    write_text(folder / "README.md", mixture_card(inputs.task, names, inputs.bank, untuned=reason))
