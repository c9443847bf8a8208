"""Stage `data`: embed pool and shots, pick open rows close to the shots that are no copies of each other."""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from kshot.atomic import write_json, write_text
from kshot.corpus import DataSelection, Pool, SentenceEncoder, select_data, text_of
from kshot.examples import Example
from kshot.model_source import resolve_model
from kshot.pipeline.inputs import NO_RATIONALE, Inputs
from kshot.prompts import form_of
from kshot.run_folder import DATA_SUMMARY, SELECTED, digest

EMBED_BLOCK = 512  # rows between two steps of the progress bar


def data_reads(inputs: Inputs) -> str:
    """Return the hash of what this stage reads; the test rows count, since they are kept out."""
    task = inputs.task
    if not task.data.budget:
        return digest("no data")
    return digest(
        [
            inputs.base_digest,  # its tokens tell which rows are too long
            inputs.shots_digest,
            inputs.test_digest,
            inputs.pool_digest,
            task.data.model_dump(mode="json"),
            task.training.max_length,
        ]
    )


def run_data(inputs: Inputs, folder: Path) -> None:
    """Write the selected rows, each with why it was kept, and a summary of what was left out."""
    if not inputs.task.data.budget:
        write_text(folder / SELECTED, "")
        write_json(
            folder / DATA_SUMMARY,
            {
                "pool_rows": 0,
                "selected": 0,
                "avoided": {},
                "without_rationale": 0,
                "dropped": [],
                "sources": {},
            },
        )
        return
    encoder = SentenceEncoder(str(resolve_model(inputs.task.data.encoder)))
    avoided = inputs.rows_to_avoid()
    pool = inputs.pool.without(avoided)
    pool_ND = _embed(encoder, pool.examples, inputs)
    shots_KD = encoder.encode([text_of(shot) for shot in inputs.shots])
    selection, too_long = _select_short_enough(inputs, pool, pool_ND, shots_KD)
    rows = [_row(inputs, pool, selection, place) for place in range(len(selection.indices))]
    write_text(folder / SELECTED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(folder / DATA_SUMMARY, _summary(inputs, pool, selection, avoided, too_long))


def _embed(encoder: SentenceEncoder, examples: tuple[Example, ...], inputs: Inputs) -> np.ndarray:
    """Embed rows in order of length, so that a block pads little; return them in their own order, (N, D)."""
    texts = [text_of(example) for example in examples]
    order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
    parts = []
    with inputs.progress.bar("embedding the pool", len(texts)) as advance:
        for start in range(0, len(order), EMBED_BLOCK):
            block = order[start : start + EMBED_BLOCK]
            parts.append(encoder.encode([texts[index] for index in block]))
            advance(len(block))
    vectors_ND: np.ndarray = np.concatenate(parts)[np.argsort(order)]
    return vectors_ND


def _select_short_enough(
    inputs: Inputs, pool: Pool, pool_ND: np.ndarray, shots_KD: np.ndarray
) -> tuple[DataSelection, set[int]]:
    """Select; where a picked row is too long to train on, leave it out and select again."""
    settings = inputs.task.data
    too_long: set[int] = set()
    while True:
        selection = select_data(
            pool_ND,
            shots_KD,
            budget=settings.budget,
            threshold=settings.threshold,
            strategy=settings.strategy,
            avoid=too_long,
        )
        found = {int(index) for index in selection.indices if _is_too_long(inputs, pool.examples[index])}
        if not found:
            return selection, too_long
        too_long |= found


def _is_too_long(inputs: Inputs, example: Example) -> bool:
    task = inputs.task
    form = form_of(task.scorer, listed=task.lists_options)
    row = inputs.lm.template.encode_example(example, form, rationale=task.trains_on_rationales)
    return len(row) > task.training.max_length


def _row(inputs: Inputs, pool: Pool, selection: DataSelection, place: int) -> dict[str, object]:
    index = int(selection.indices[place])
    shot = inputs.shots[int(selection.nearest_shot[place])]
    return pool.examples[index].to_row() | {
        "source": pool.sources[index],
        "relevance": round(float(selection.scores[place]), 5),
        "nearest_shot": shot.id,
    }


def _summary(
    inputs: Inputs, pool: Pool, selection: DataSelection, avoided: dict[int, str], too_long: set[int]
) -> dict[str, object]:
    copies = [
        {
            "id": pool.examples[drop.index].id,
            "reason": drop.reason,
            "kept": pool.examples[drop.kept].id,
            "cosine": round(float(drop.cosine), 5),
        }
        for drop in selection.dropped
    ]
    limit = f"longer than training.max_length = {inputs.task.training.max_length}"
    named = {
        inputs.pool.examples[index].id: reason
        for index, reason in sorted(avoided.items())
        if reason != NO_RATIONALE
    } | {pool.examples[index].id: limit for index in sorted(too_long)}
    return {
        "pool_rows": len(inputs.pool),
        "duplicates_skipped": sum(skipped.count for skipped in inputs.pool.skipped),
        "selected": len(selection.indices),
        "without_rationale": sum(reason == NO_RATIONALE for reason in avoided.values()),
        "avoided": named,
        "dropped": copies,
        "sources": dict(Counter(pool.sources[int(index)] for index in selection.indices).most_common()),
    }
