"""Where shots, kept rows and a sample of the pool lie, for the report: two main directions of their vectors.

M: rows that have vectors, K: shots, P: points of the map, D: embedding size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kshot.atomic import write_json
from kshot.corpus import DataSelection, Vectors
from kshot.corpus.scan import exact_relevance, unit_rows
from kshot.pipeline.inputs import Inputs
from kshot.run_folder import DATA_MAP

MAX_ROWS = 4_000  # of the pool: more hide each other
TEXT_LENGTH = 100  # characters of a row, which a small label has room for
_POWER_STEPS = 12  # of the search for directions; with four spare ones, coordinates are right to 3 digits
_SPARE_DIRECTIONS = 4


def write_map(
    inputs: Inputs,
    folder: Path,
    rows_M: np.ndarray,
    vectors_MD: Vectors,
    shots_KD: np.ndarray,
    selection: DataSelection,
) -> None:
    """Write the map beside the selected rows.

    The pool is drawn without regard to relevance, the same rows each time; rows without a vector have no
    place. Directions are those of the drawn rows alone, so that few kept rows do not turn them.

    Args:
        inputs: Of the run.
        folder: Of the stage.
        rows_M: Pool rows that have vectors.
        vectors_MD: Their vectors.
        shots_KD: Those of the shots.
        selection: Its indices count within `rows_M`.
    """
    places_P = _drawn(vectors_MD)
    pool_PD = unit_rows(vectors_MD, places_P)
    kept = selection.indices
    mean_D, axes_D2, explained = _directions(pool_PD)
    sources = sorted({inputs.pool.source_of(row) for row in rows_M[np.append(places_P, kept)].tolist()})

    def points(places: np.ndarray, relevance: np.ndarray) -> list[list[Any]]:
        rows = rows_M[places]
        coordinates = (unit_rows(vectors_MD, places) - mean_D) @ axes_D2
        texts = [example.request for example in inputs.pool.examples_at(rows)]
        names = [sources.index(inputs.pool.source_of(row)) for row in rows.tolist()]
        return _points(coordinates, names, relevance.tolist(), texts)

    strategy = inputs.task.data.strategy
    relevance_P = exact_relevance(vectors_MD, places_P, shots_KD, strategy).scores
    shots_KD = np.asarray(shots_KD, dtype=np.float64)
    shots_KD = shots_KD / np.linalg.norm(shots_KD, axis=1, keepdims=True)
    nobody: list[None] = [None] * len(shots_KD)
    shot_texts = [f"{shot.id}: {shot.request}" for shot in inputs.shots]
    write_json(
        folder / DATA_MAP,
        {
            "columns": ["x", "y", "source", "relevance", "text"],
            "sources": sources,
            "explained": round(explained, 4),
            "num_comparable": len(rows_M),
            "shots": _points((shots_KD - mean_D) @ axes_D2, nobody, nobody, shot_texts),
            "kept": points(kept, selection.scores),
            "pool": points(places_P, relevance_P),
        },
    )


def _drawn(vectors_MD: Vectors) -> np.ndarray:
    """Return places of a sample in rising order, without rows of zeros."""
    count = len(vectors_MD)
    drawn = np.arange(count)
    if count > MAX_ROWS:
        drawn = np.sort(np.random.default_rng(0).choice(count, MAX_ROWS, replace=False))
    return drawn[np.asarray(vectors_MD[drawn], dtype=np.float32).any(axis=1)]


def _directions(rows_PD: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the mean, the two directions of largest variance (D, 2), and their share of the variance.

    A direction points where its largest component is positive; where rows do not vary, it is zero.
    """
    mean_D = rows_PD.mean(axis=0)
    centred_PD = rows_PD - mean_D
    axes_D2 = np.zeros((rows_PD.shape[1], 2))
    variance = float((centred_PD**2).sum())
    if variance < 1e-12:
        return mean_D, axes_D2, 1.0
    found = min(2 + _SPARE_DIRECTIONS, *rows_PD.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, sizes, axes = torch.pca_lowrank(
            torch.from_numpy(centred_PD), q=found, center=False, niter=_POWER_STEPS
        )
    axes_DQ = axes[:, :2].numpy()
    signs_Q = np.sign(axes_DQ[np.abs(axes_DQ).argmax(axis=0), np.arange(axes_DQ.shape[1])])
    axes_D2[:, : axes_DQ.shape[1]] = axes_DQ * signs_Q
    return mean_D, axes_D2, float((sizes[:2] ** 2).sum()) / variance


def _points(
    coordinates_P2: np.ndarray,
    sources: Sequence[int | None],
    relevance: Sequence[float | None],
    texts: Sequence[str],
) -> list[list[Any]]:
    return [
        [round(x, 4), round(y, 4), source, None if one is None else round(one, 4), _short(text)]
        for (x, y), source, one, text in zip(coordinates_P2.tolist(), sources, relevance, texts, strict=True)
    ]


def _short(text: str) -> str:
    flat = " ".join(text[: 4 * TEXT_LENGTH].split())
    return flat if len(flat) <= TEXT_LENGTH else f"{flat[: TEXT_LENGTH - 1]}…"
