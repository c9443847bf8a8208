"""Stage `eval`: the same test rows for every arm, from the untouched base to the tuned mixture."""

from pathlib import Path
from typing import Any

from kshot.atomic import write_json
from kshot.evaluation import evaluate, num_units
from kshot.evaluation.sandbox import open_sandbox
from kshot.evaluation.scorers import EXECUTING
from kshot.evaluation.statistics import mcnemar
from kshot.pipeline.arms import ARMS, TUNED, Arm, model_of
from kshot.pipeline.choice_stage import choice_made
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.token_experts import write_token_experts
from kshot.run_folder import PREDICTIONS, RESULTS, RunFolder, digest


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
    made = {"base": inputs.base_digest}.get(arm) or run.wrote(TUNED.get(arm, "experts"))
    task = inputs.task
    return digest([arm, made, inputs.test_digest, task.scorer, task.evaluation.asked()])


def run_arm(inputs: Inputs, run: RunFolder, arm: Arm, folder: Path) -> None:
    """Write predictions and numbers of one arm."""
    task = inputs.task
    beside = task.evaluation.beside
    total = num_units(inputs.test, task.scorer, listed=task.lists_options, beside=beside)
    with model_of(inputs, run, arm) as lm, inputs.progress.bar(f"testing {ARMS[arm]}", total) as advance:
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
        if arm == "tuned_mixture":
            write_token_experts(lm, result.predictions, folder)
    rows = [prediction.to_row() for prediction in result.predictions]
    write_json(folder / PREDICTIONS, {"summary": result.summary(), "predictions": rows})


def write_results(run: RunFolder) -> dict[str, Any]:
    """Gather the arms into one table, each with the p-value of its difference to the tuned mixture.

    Beside it stands what was chosen by the shots alone, so that it can be told how often that was right.
    """
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
    results = {"table": table, "chosen": choice_made(run)}
    write_json(run.path("eval", RESULTS), results)
    return results
