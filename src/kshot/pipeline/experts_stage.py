"""Stage `experts`: score every adapter on the shots, compare them, pick a group."""

from dataclasses import asdict
from pathlib import Path

from kshot.atomic import write_json
from kshot.experts import ExpertScore, adapter_similarity, score_experts, select_experts
from kshot.pipeline.inputs import Inputs
from kshot.run_folder import SCORES, SELECTION, SIMILARITY, digest


def experts_reads(inputs: Inputs) -> str:
    """Return the hash of what this stage reads."""
    task = inputs.task
    settings = [task.scorer, task.evaluation.model_dump(), task.experts.model_dump(mode="json")]
    return digest([inputs.base_digest, inputs.shots_digest, inputs.bank_digest, settings])


def run_experts(inputs: Inputs, folder: Path) -> None:
    """Write scores, similarity and selection."""
    task, lm = inputs.task, inputs.lm
    with inputs.progress.bar("scoring adapters", len(inputs.bank)) as advance:

        def on_score(score: ExpertScore) -> None:
            advance(1)

        scores = score_experts(
            lm,
            inputs.bank,
            inputs.shots,
            scorer=task.scorer,
            listed=task.lists_options,
            max_new_tokens=task.evaluation.max_new_tokens,
            on_score=on_score,
        )
    similarity = adapter_similarity(inputs.bank, mode=task.experts.similarity)
    selection = select_experts(
        scores,
        similarity,
        num_experts=task.experts.num_experts,
        num_candidates=min(task.experts.num_candidates, len(inputs.bank)),
        balance=task.experts.balance,
    )
    write_json(folder / SCORES, [asdict(score) for score in scores])
    write_json(
        folder / SIMILARITY, {"names": similarity.names, "matrix": similarity.matrix.round(6).tolist()}
    )
    write_json(folder / SELECTION, selection.to_json())
