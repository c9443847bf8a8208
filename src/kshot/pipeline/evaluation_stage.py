"""Stage `eval`: the same test rows for every arm, from the untouched base to the tuned mixture."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import peft

from kshot.atomic import write_json
from kshot.evaluation import evaluate, num_units
from kshot.evaluation.sandbox import open_sandbox
from kshot.evaluation.scorers import EXECUTING
from kshot.evaluation.statistics import mcnemar
from kshot.experts import attached
from kshot.language_model import LanguageModel
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.training_stage import chosen_experts
from kshot.run_folder import ADAPTER, PREDICTIONS, RESULTS, RunFolder, digest

Arm = Literal["base", "best_single", "best_single_tuned", "uniform_mixture", "tuned_mixture"]
ARMS: dict[Arm, str] = {
    "base": "base model",
    "best_single": "best single expert (by the shots)",
    "best_single_tuned": "best single expert, tuned",
    "uniform_mixture": "uniform mixture",
    "tuned_mixture": "tuned mixture",
}
_MADE_BY = {"best_single_tuned": "single", "tuned_mixture": "expert"}


def check_sandbox(inputs: Inputs) -> None:
    """See that what models write can be run, where the task does, and say so where nothing shuts it in.

    Raises:
        SandboxError: It cannot.
    """
    if inputs.task.scorer in EXECUTING and not open_sandbox().isolated:
        inputs.progress.say(
            "warning: without bubblewrap, what models write runs with your rights: it can change your files"
        )


def arm_reads(inputs: Inputs, run: RunFolder, arm: Arm) -> str:
    """Return the hash of what the evaluation of an arm reads."""
    made = {"base": inputs.base_digest}.get(arm) or run.wrote(_MADE_BY.get(arm, "experts"))
    task = inputs.task
    return digest([arm, made, inputs.test_digest, task.scorer, task.evaluation.model_dump()])


def run_arm(inputs: Inputs, run: RunFolder, arm: Arm, folder: Path) -> None:
    """Write predictions and numbers of one arm."""
    task = inputs.task
    beside = task.evaluation.beside
    total = num_units(inputs.test, task.scorer, listed=task.lists_options, beside=beside)
    with _model_of(inputs, run, arm) as lm, inputs.progress.bar(f"testing {ARMS[arm]}", total) as advance:
        result = evaluate(
            lm,
            inputs.test,
            scorer=task.scorer,
            listed=task.lists_options,
            beside=beside,
            max_new_tokens=task.evaluation.max_new_tokens,
            batch_size=task.evaluation.batch_size,
            progress=advance,
        )
    rows = [prediction.to_row() for prediction in result.predictions]
    write_json(folder / PREDICTIONS, {"summary": result.summary(), "predictions": rows})


@contextmanager
def _model_of(inputs: Inputs, run: RunFolder, arm: Arm) -> Iterator[LanguageModel]:
    lm = inputs.lm
    if arm == "base":
        yield lm
    elif arm == "best_single":
        with attached(lm, chosen_experts(inputs, run, "single"), gates=[1.0]):
            yield lm
    elif arm == "uniform_mixture":
        experts = chosen_experts(inputs, run, "expert")
        with attached(lm, experts, gates=[1 / len(experts)] * len(experts)):
            yield lm
    else:
        base = lm.model
        lm.model = peft.PeftModel.from_pretrained(base, str(run.path(_MADE_BY[arm], ADAPTER))).eval()
        try:
            yield lm
        finally:
            lm.model = lm.model.unload()


def write_results(run: RunFolder) -> dict[str, Any]:
    """Gather the arms into one table, each with the p-value of its difference to the tuned mixture."""
    found = {arm: run.read_json("eval", arm, PREDICTIONS) for arm in ARMS}
    right = {arm: [row["correct"] for row in found[arm]["predictions"]] for arm in ARMS}
    table = [
        {
            "arm": arm,
            "title": title,
            **found[arm]["summary"],
            "p_against_tuned_mixture": None
            if arm == "tuned_mixture"
            else mcnemar(right["tuned_mixture"], right[arm]),
        }
        for arm, title in ARMS.items()
    ]
    results = {"table": table}
    write_json(run.path("eval", RESULTS), results)
    return results
