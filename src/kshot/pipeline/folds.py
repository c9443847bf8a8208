"""Every arm on every shot, the trained ones by models that were not trained on it.

Shots are dealt into F folds. For each fold a trained arm is trained anew, on the shots of the others and on
the selected rows, and measured on the shots of the fold. So the settings are judged, not the adapter that is
handed over, which saw all shots. Selected rows are near the shots that they were selected for, those of the
fold included; what they share with one beyond its topic is not known, but a row that asks what a shot asks is
never selected.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kshot.atomic import write_json
from kshot.examples import Example
from kshot.experts.held_out import HeldOutLoss, held_out_losses
from kshot.language_model import LanguageModel
from kshot.pipeline.arms import ARMS, TUNED, Arm, model_of
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.training_stage import TrainedStage, training_rows, tuned
from kshot.run_folder import RunFolder

KEPT = ".choice.folds-"  # at the top of the run, until the stage is finished: what a killed run goes on from


def deal(num_shots: int, folds: int, seed: int) -> list[int]:
    """Return the fold of each shot: at random, since shots may be sorted, and as evenly as can be."""
    fold_of = [0] * num_shots
    for place, shot in enumerate(np.random.default_rng(seed).permutation(num_shots)):
        fold_of[shot] = place % folds
    return fold_of


def judged_arms(inputs: Inputs) -> list[Arm]:
    """Return the arms that are compared; the tuned single expert costs as much again as the mixture."""
    return [arm for arm in ARMS if arm != "best_single_tuned" or inputs.task.evaluation.fold_single]


def losses_on_folds(
    inputs: Inputs, run: RunFolder, fold_of: Sequence[int], version: str
) -> dict[Arm, list[HeldOutLoss]]:
    """Return what each arm does on each shot, in the order of the shots.

    What a fold gave is kept beside the stage, as checkpoints are, under a name that holds the version.

    Args:
        inputs: Of the run.
        run: With experts and data selected.
        fold_of: Fold of each shot.
        version: Of what all this depends on.
    """
    kept, found = run.path(f"{KEPT}{version[:12]}"), {}
    for arm in judged_arms(inputs):
        if arm in TUNED:
            found[arm] = _cross_fitted(inputs, run, TUNED[arm], fold_of, kept)
        else:
            with model_of(inputs, run, arm) as lm:
                found[arm] = _losses(inputs, lm, inputs.shots)
    return found


def _cross_fitted(
    inputs: Inputs, run: RunFolder, stage: TrainedStage, fold_of: Sequence[int], kept: Path
) -> list[HeldOutLoss]:
    found: dict[int, HeldOutLoss] = {}
    for fold in range(1 + max(fold_of)):
        places = [shot for shot, one in enumerate(fold_of) if one == fold]
        found |= zip(places, _of_fold(inputs, run, stage, fold_of, fold, kept), strict=True)
    return [found[shot] for shot in range(len(fold_of))]


def _of_fold(
    inputs: Inputs, run: RunFolder, stage: TrainedStage, fold_of: Sequence[int], fold: int, kept: Path
) -> list[HeldOutLoss]:
    task, name = inputs.task, f"{stage}-{fold + 1}"
    result = kept / f"{name}.json"
    if result.is_file():
        return [HeldOutLoss(**row) for row in run.read_json(*result.relative_to(run.root).parts)]
    shots = list(zip(inputs.shots, fold_of, strict=True))
    settings = task.training.model_copy(
        update={
            "num_train_epochs": task.training.num_train_epochs * task.evaluation.fold_epochs,
            "report_to": "none",
        }
    )
    with tuned(
        inputs,
        run,
        stage,
        training_rows(inputs, run, [shot for shot, one in shots if one != fold]),
        settings,
        beside=f" without fold {fold + 1} of {1 + max(fold_of)}",
        checkpoints=kept / name,
    ):
        found = _losses(inputs, inputs.lm, [shot for shot, one in shots if one == fold])
    write_json(result, [asdict(one) for one in found])
    shutil.rmtree(kept / name)
    return found


def _losses(inputs: Inputs, lm: LanguageModel, shots: Sequence[Example]) -> list[HeldOutLoss]:
    task = inputs.task
    return held_out_losses(
        lm, shots, scorer=task.scorer, listed=task.lists_options, rationales=task.trains_on_rationales
    )
