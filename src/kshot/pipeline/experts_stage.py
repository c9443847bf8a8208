"""Stage `experts`: score every adapter on the shots, compare them, pick a group."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kshot.atomic import write_json
from kshot.errors import AdapterError, ConfigError
from kshot.experts import (
    ExpertSelection,
    Scores,
    ScoreStore,
    Similarity,
    adapter_similarity,
    flag_leaks,
    score_at_endpoint,
    score_experts,
    select_experts,
)
from kshot.experts.endpoint_client import CompletionsClient
from kshot.experts.endpoint_names import check_names
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.screening_stage import survivors
from kshot.run_folder import SCORE_SECONDS, SCORE_STORE, SCORES, SELECTION, SIMILARITY, RunFolder, digest

# Settings that say how the work is done, and not what comes out.
_HOW_TO_ASK = {"api_key_env": True, "concurrency": True, "requests_per_minute": True, "timeout_s": True}
_CHANGE_NOTHING: dict[str, Any] = {"memory_mb": True, "endpoint": _HOW_TO_ASK}


def check_scoring(inputs: Inputs) -> None:
    """Load what scoring needs, so that what is wrong with it is found before anything is written.

    A server is not asked yet: what an earlier run has scored needs none.
    """
    endpoint = inputs.task.experts.endpoint
    if endpoint is None:
        _ = inputs.lm
    elif inputs.engine:
        raise ConfigError(
            "expected one place where adapters are scored, got an engine and experts.endpoint: leave out one"
        )
    else:
        check_names(inputs.bank, endpoint)
        CompletionsClient(endpoint, inputs.served_base)


def experts_reads(inputs: Inputs) -> str:
    """Return the hash of what this stage reads."""
    task = inputs.task
    experts = task.experts.model_dump(mode="json", exclude=_CHANGE_NOTHING)
    asked = {name: value for name, value in task.evaluation.asked().items() if name != "beside"}
    settings = [task.scorer, asked, experts, task.name]
    return digest([inputs.base_digest, inputs.shots_digest, inputs.bank_digest, settings])


def run_experts(inputs: Inputs, run: RunFolder, folder: Path) -> None:
    """Write scores, similarity and selection.

    What every adapter does on every shot is also kept at the top of the run, batch by batch: a killed run
    goes on from there, and one with another bank scores what is new.

    Raises:
        AdapterError: Too few adapters can be scored.
    """
    task = inputs.task
    scores = _score(inputs, run, folder)
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


def _score(inputs: Inputs, run: RunFolder, folder: Path) -> Scores:
    task, store = inputs.task, ScoreStore(run.path(SCORE_STORE))
    bank = survivors(inputs, run, folder, store) if inputs.is_screened else inputs.bank
    asked: dict[str, Any] = {
        "scorer": task.scorer,
        "listed": task.lists_options,
        "max_new_tokens": task.evaluation.max_new_tokens,
        "store": store,
    }
    with inputs.progress.bar("scoring adapters on shots", len(bank) * len(inputs.shots)) as advance:
        if task.experts.endpoint:
            scores = score_at_endpoint(
                inputs.served_base,
                bank,
                inputs.shots,
                task.experts.endpoint,
                say=inputs.progress.say,
                progress=advance,
                **asked,
            )
        else:
            scores = score_experts(
                inputs.lm,
                bank,
                inputs.shots,
                memory_mb=task.experts.memory_mb,
                engine=inputs.engine,
                progress=advance,
                **asked,
            )
    for name, reason in scores.failures.items():
        inputs.progress.say(f"left out {name}: {reason}")
    if len(scores) < task.experts.num_experts:
        name, reason = next(iter(scores.failures.items()))
        raise AdapterError(
            f"expected at least experts.num_experts = {task.experts.num_experts} adapters that can be "
            f"scored, got {len(scores)} of {len(bank)}; {name}: {reason}"
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
