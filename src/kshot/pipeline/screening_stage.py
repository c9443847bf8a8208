"""Stage `screening`: a bank in the order of foretold losses; and from any bank to the few that are scored."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.experts import Halving, ScoreStore, halve_experts, screen_experts
from kshot.experts.halving_plan import num_entrants
from kshot.pipeline.inputs import Inputs
from kshot.run_folder import ORDER, SCORE_STORE, SCREENING, RunFolder, digest

SHOWN_FAILURES = 5  # of a bank of any size; all are in the file


def screening_reads(inputs: Inputs) -> str:
    """Return the hash of what this stage reads."""
    asked = [inputs.task.scorer, inputs.task.lists_options, inputs.task.experts.screen_draws]
    return digest([inputs.base_digest, inputs.shots_digest, inputs.bank_digest, asked])


def run_screening(inputs: Inputs, run: RunFolder, folder: Path) -> None:
    """Write what every adapter is foretold to do to the loss on the shots, best first.

    It is also kept at the top of the run, block by block, as scores are.

    Raises:
        AdapterError: No adapter can be ordered.
    """
    task = inputs.task
    with inputs.progress.bar("ordering adapters", len(inputs.bank)) as advance:
        screening = screen_experts(
            inputs.lm,
            inputs.bank,
            inputs.shots,
            scorer=task.scorer,
            listed=task.lists_options,
            num_draws=task.experts.screen_draws,
            store=ScoreStore(run.path(SCORE_STORE)),
            progress=advance,
        )
    for name, reason in list(screening.failures.items())[:SHOWN_FAILURES]:
        inputs.progress.say(f"left out {name}: {reason}")
    if len(screening.failures) > SHOWN_FAILURES:
        inputs.progress.say(
            f"left out {len(screening.failures) - SHOWN_FAILURES} more: see {run.path('screening', ORDER)}"
        )
    order = [
        {"name": name, "change": change, **asdict(screening.expansions[name])}
        for name, change in screening.changes.items()
    ]
    write_json(folder / ORDER, {"order": order, "failures": screening.failures})


def is_ordered(inputs: Inputs) -> bool:
    """Whether the bank is larger than what the first round of halving takes."""
    return _num_entrants(inputs) < len(inputs.bank)


def survivors(inputs: Inputs, run: RunFolder, folder: Path, store: ScoreStore) -> Bank:
    """Return the adapters to score, and write how they were found: the first of the order, then halved.

    A server scores whatever it is asked, so that of adapters that it holds none is halved here.

    Args:
        inputs: Of the run.
        run: Whose stage `screening` is finished, if the bank is ordered.
        folder: Of the stage `experts`.
        store: Keeps what halving finds out of adapters and shots.

    Raises:
        AdapterError: No adapter can be run.
    """
    keep, entered = inputs.task.experts.num_scored(len(inputs.bank)), inputs.bank
    if is_ordered(inputs):
        order = [one["name"] for one in run.read_json("screening", ORDER)["order"]]
        entered = inputs.bank.subset(order[: _num_entrants(inputs)])
    if inputs.task.experts.endpoint is None:
        halving = _halve(inputs, entered, keep, store)
    else:
        halving = Halving(tuple(entered.names), (), {})
    write_json(folder / SCREENING, _plain(halving, entered) | {"num_adapters": len(inputs.bank)})
    how = f"the first {len(entered)} of the order, " if is_ordered(inputs) else ""
    inputs.progress.say(
        f"{len(halving.survivors)} of {len(inputs.bank)} adapters are scored: {how}after "
        f"{len(halving.rounds)} rounds of halving"
    )
    return inputs.bank.subset(halving.survivors)


def _num_entrants(inputs: Inputs) -> int:
    experts = inputs.task.experts
    keep = experts.num_scored(len(inputs.bank))
    if experts.endpoint is not None or not inputs.is_screened:
        return keep
    rounds = {"first_shots": experts.halving_shots, "factor": experts.halving_factor}
    return num_entrants(len(inputs.shots), keep, **rounds)


def _halve(inputs: Inputs, entered: Bank, keep: int, store: ScoreStore) -> Halving:
    task = inputs.task
    with inputs.progress.bar("halving adapters over shots", len(entered) * len(inputs.shots)) as advance:
        halving = halve_experts(
            inputs.lm,
            entered,
            inputs.shots,
            keep=keep,
            first_shots=task.experts.halving_shots,
            factor=task.experts.halving_factor,
            method=task.experts.method,
            scorer=task.scorer,
            listed=task.lists_options,
            memory_mb=task.experts.memory_mb,
            store=store,
            progress=advance,
        )
    for name, reason in halving.failures.items():
        inputs.progress.say(f"left out {name}: {reason}")
    return halving


def _plain(halving: Halving, entered: Bank) -> dict[str, Any]:
    return {
        "entered": entered.names,
        "rounds": [
            {
                "num_shots": one.num_shots,
                "ranking": [{"name": name, "mean_nll": one.mean_nll[name]} for name in one.ranking],
                "survivors": list(one.survivors),
            }
            for one in halving.rounds
        ],
        "survivors": list(halving.survivors),
        "failures": halving.failures,
    }
