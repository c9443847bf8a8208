"""Stage `data`: embed pool and shots, pick open rows close to the shots that are no copies of each other."""

from pathlib import Path

import numpy as np

from kshot.atomic import write_json, write_text
from kshot.config import EncoderDtype
from kshot.corpus import (
    LengthLimits,
    Rule,
    SourceQuota,
    TextEncoder,
    Vectors,
    embed_pool,
    load_encoder,
    select_data,
    shortlist,
    text_of,
)
from kshot.corpus.diversity import RELEVANCE_WEIGHT
from kshot.corpus.encoders import BASE_MODEL
from kshot.corpus.first_rows import Asked, FirstRows, GatheredRows
from kshot.corpus.order import first_depth
from kshot.corpus.text_shards import spread_encoder
from kshot.examples import Example
from kshot.experts.sent_model import SentModel
from kshot.pipeline.data_map import write_map
from kshot.pipeline.data_report import dropped_rows, json_lines, selected_rows, summary_of
from kshot.pipeline.inputs import Inputs
from kshot.prompts import form_of
from kshot.run_folder import DATA_SUMMARY, DROPPED, SELECTED, digest


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
            inputs.benchmarks_digest,
            inputs.pool_digest,
            task.data.model_dump(mode="json"),
            task.training.max_length,
        ]
    )


def run_data(inputs: Inputs, folder: Path) -> None:
    """Write the selected rows and the dropped ones, each with the reason, and a summary."""
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
                "by_source": [],
            },
        )
        return
    settings = inputs.task.data
    rows_M, vectors_MD, shots_KD, first = _embed(inputs)
    is_whole_pool = len(rows_M) == len(inputs.pool)  # a shortlist holds no row that must be avoided
    selection = select_data(
        vectors_MD,
        shots_KD,
        budget=settings.budget,
        threshold=settings.threshold,
        strategy=settings.strategy,
        relevance_weight=settings.relevance_weight or RELEVANCE_WEIGHT,
        avoid=inputs.survey.avoided if is_whole_pool else (),
        keys_N=inputs.survey.keys[rows_M],
        rules=_rules(inputs, rows_M),
        first=first,
    )
    selected = selected_rows(inputs, rows_M, selection)
    dropped = dropped_rows(inputs, rows_M, selection)
    write_map(inputs, folder, rows_M, vectors_MD, shots_KD, selection)
    write_text(folder / SELECTED, json_lines(selected))
    write_text(folder / DROPPED, json_lines(dropped))
    write_json(folder / DATA_SUMMARY, summary_of(inputs, selected, dropped, selection.num_zero))


def _embed(inputs: Inputs) -> tuple[np.ndarray, Vectors, np.ndarray, FirstRows | None]:
    """Return the pool rows that have vectors, their vectors, those of the shots, and what workers found."""
    settings, pool, avoided = inputs.task.data, inputs.pool, inputs.survey.avoided
    encoder = _encoder(inputs, settings.encoder, settings.encoder_prefix, settings.encoder_dtype)
    shots_KD = encoder.encode([text_of(shot) for shot in inputs.shots])
    if settings.shortlist_encoder is None:
        gathered = _gathered(inputs, shots_KD) if inputs.engine else None
        with inputs.progress.bar("embedding the pool", len(pool)) as advance:
            vectors_ND = embed_pool(pool, encoder, advance, gathered=gathered)
        return np.arange(len(pool)), vectors_ND, shots_KD, gathered.whole() if gathered else None
    cheap = _encoder(inputs, settings.shortlist_encoder)
    num_rows = settings.shortlist_factor * settings.budget
    total = len(pool) + min(num_rows, len(pool) - len(avoided))
    with inputs.progress.bar("embedding the pool", total) as advance:
        rows_M, vectors_MD = shortlist(
            pool, inputs.shots, cheap, encoder, num_rows, advance, avoid=avoided.tolist()
        )
    return rows_M, vectors_MD, shots_KD, None


def _gathered(inputs: Inputs, shots_KD: np.ndarray) -> GatheredRows:
    """Let whoever embeds a shard find its rows nearest to the shots."""
    settings = inputs.task.data
    usable_N = np.ones(len(inputs.pool), dtype=bool)
    usable_N[inputs.survey.avoided] = False
    depth = first_depth(settings.strategy, settings.budget, len(shots_KD))
    return GatheredRows(Asked(shots_KD, settings.strategy, depth), usable_N, inputs.survey.keys)


def _encoder(
    inputs: Inputs, reference: str, prefix: str = "", dtype: EncoderDtype = "float32"
) -> TextEncoder:
    here = load_encoder(reference, prefix=prefix, dtype=dtype, base_model=lambda: inputs.lm)
    sends_base = inputs.engine is not None and reference == BASE_MODEL
    base_model = SentModel.of(inputs.lm).load if sends_base else None
    return spread_encoder(here, inputs.engine, reference, prefix=prefix, dtype=dtype, base_model=base_model)


def _rules(inputs: Inputs, rows_M: np.ndarray) -> list[Rule]:
    """Return the limits of the task, the cheap one first."""
    settings, pool = inputs.task.data, inputs.pool
    rules: list[Rule] = []
    if settings.source_quota is not None:
        rules.append(SourceQuota(lambda place: pool.source_of(int(rows_M[place])), settings.source_quota))
    longest = settings.max_tokens or inputs.task.training.max_length
    rules.append(
        LengthLimits(
            lambda place: _num_tokens(inputs, pool[int(rows_M[place])]), settings.min_tokens, longest
        )
    )
    return rules


def _num_tokens(inputs: Inputs, example: Example) -> int:
    task = inputs.task
    form = form_of(task.scorer, listed=task.lists_options)
    return len(inputs.lm.template.encode_example(example, form, rationale=task.trains_on_rationales))
