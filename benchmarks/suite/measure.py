"""Measure a model on test rows: answers and their likelihood, by row, small enough to keep for every cell."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kshot.errors import AdapterError
from kshot.evaluation import evaluate
from kshot.evaluation.runner import EvaluationResult
from kshot.examples import Example
from kshot.language_model import LanguageModel
from suite.recipe import TaskRecipe

DIGITS = 4  # of an NLL by row


def measure(lm: LanguageModel, rows: Sequence[Example], recipe: TaskRecipe) -> dict[str, Any]:
    """Return accuracy, NLL and predictions of the model as it is now.

    The NLL is the mean over rows of the mean over the target's tokens: the right response, or the text of the
    right choice.

    Raises:
        AdapterError: Likelihoods are not numbers.
        SandboxError: The scorer runs what the model wrote, and this machine has no sandbox for it.
    """
    result = evaluate(
        lm, rows, scorer=recipe.scorer, listed=recipe.listed, max_new_tokens=recipe.max_new_tokens
    )
    encoded = [lm.template.encode_example(row, recipe.form) for row in rows]
    nll = [float(values.mean()) for values in lm.token_nll(encoded)]
    if not all(map(math.isfinite, nll)):
        raise AdapterError(
            "expected likelihoods that are numbers, got some that are not: training diverged, lower the rates"
        )
    return {**result.summary(), "nll": fmean(nll), "predictions": _columns(result, rows, nll)}


def _columns(result: EvaluationResult, rows: Sequence[Example], nll: Sequence[float]) -> dict[str, Any]:
    """Return predictions by column; of choices the number of the one taken, and the NLL of each."""
    found = result.predictions
    columns: dict[str, Any] = {
        "id": [one.id for one in found],
        "correct": "".join("1" if one.correct else "0" for one in found),
        "nll": [round(value, DIGITS) for value in nll],
    }
    if found and "nll" in found[0].details:
        columns["taken"] = [one.details["acc_norm"] for one in found]
        columns["choices_nll"] = [[round(v, DIGITS) for v in one.details["nll"]] for one in found]
        return columns
    columns["answer"] = [one.prediction for one in found]
    if found and "outcome" in found[0].details:
        columns["outcome"] = [one.details["outcome"] for one in found]
    return columns


def right_of(cell: dict[str, Any]) -> dict[str, bool]:
    """Return whether each row of a stored cell was answered rightly, by its id."""
    predictions = cell["predictions"]
    return {name: mark == "1" for name, mark in zip(predictions["id"], predictions["correct"], strict=True)}
