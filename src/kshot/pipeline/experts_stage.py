"""Stage `experts`: score every adapter on the shots, compare them, pick a group."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kshot.atomic import write_json
from kshot.errors import AdapterError
from kshot.experts import (
    ExpertSelection,
    Scores,
    ScoreStore,
    Similarity,
    adapter_similarity,
    flag_leaks,
    score_experts,
    select_experts,
)
from kshot.pipeline.inputs import Inputs
from kshot.run_folder import SCORE_SECONDS, SCORE_STORE, SCORES, SELECTION, SIMILARITY, RunFolder, digest


def experts_reads(inputs: Inputs) -> str:
    """Return the hash of what this stage reads."""
    task = inputs.task
    experts = task.experts.model_dump(mode="json", exclude={"memory_mb"})
    settings = [task.scorer, task.evaluation.model_dump(), experts, task.name]
    return digest([inputs.base_digest, inputs.shots_digest, inputs.bank_digest, settings])


def run_experts(inputs: Inputs, run: RunFolder, folder: Path) -> None:
    """Write scores, similarity and selection.

    What every adapter does on every shot is also kept at the top of the run, batch by batch: a killed run
    goes on from there, and one with another bank scores what is new.

    Raises:
        AdapterError: Too few adapters can be scored.
    """
    task = inputs.task
    scores = _score(inputs, run)
    scored = inputs.bank.subset([score.name for score in scores])
    with inputs.progress.bar("comparing adapters", len(scored)) as advance:
        similarity = adapter_similarity(scored, task.experts.similarity, advance)
    selection = _select(inputs, scores, similarity, {})
    flagged = flag_leaks(scored, task.name, inputs.shots)
    rows = [asdict(score) for score in scores]
    write_json(folder / SCORE_SECONDS, {row["name"]: round(row.pop("seconds"), 3) for row in rows})
    write_json(folder / SCORES, {"scores": rows, "failures": scores.failures})
    write_json(
        folder / SIMILARITY, {"names": similarity.names, "matrix": similarity.matrix.round(6).tolist()}
    )
    leaks = {
        "flagged": flagged,
        "without_flagged": _without(inputs, scores, similarity, flagged),
        "failures": scores.failures,
    }
    write_json(folder / SELECTION, selection.to_json() | leaks)


def _score(inputs: Inputs, run: RunFolder) -> Scores:
    task, lm = inputs.task, inputs.lm
    with inputs.progress.bar("scoring adapters on shots", len(inputs.bank) * len(inputs.shots)) as advance:
        scores = score_experts(
            lm,
            inputs.bank,
            inputs.shots,
            scorer=task.scorer,
            listed=task.lists_options,
            max_new_tokens=task.evaluation.max_new_tokens,
            memory_mb=task.experts.memory_mb,
            store=ScoreStore(run.path(SCORE_STORE)),
            progress=advance,
        )
    for name, reason in scores.failures.items():
        inputs.progress.say(f"left out {name}: {reason}")
    if len(scores) < task.experts.num_experts:
        name, reason = next(iter(scores.failures.items()))
        raise AdapterError(
            f"expected at least experts.num_experts = {task.experts.num_experts} adapters that can be "
            f"scored, got {len(scores)} of {len(inputs.bank)}; {name}: {reason}"
        )
    return scores


def _select(
    inputs: Inputs, scores: Scores, similarity: Similarity, flagged: Mapping[str, str]
) -> ExpertSelection:
    experts = inputs.task.experts
    return select_experts(
        scores,
        similarity,
        num_experts=experts.num_experts,
        num_candidates=experts.num_candidates,
        method=experts.method,
        exclude=tuple(flagged),
    )


def _without(
    inputs: Inputs, scores: Scores, similarity: Similarity, flagged: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return what would be chosen without the flagged adapters; None without any, or if too few are left."""
    if not flagged or len(scores) - len(flagged) < inputs.task.experts.num_experts:
        return None
    selection = _select(inputs, scores, similarity, flagged)
    return {
        "experts": list(selection.experts),
        "best_single": selection.best_single,
        "why": selection.why(),
    }
