"""Selecting from millions of rows: the scan against the bare matrix product, its growth, and dedup.

    python benchmarks/data_selection.py [--rows 1000000] [--folder DIR]

Scan: rows x 384 float16 unit rows in a memory-mapped file, 50 shots; beside it numpy's float32 product of
the same rows in memory. Growth: rows x 256 at a tenth, one and ten times `--rows`. Dedup: candidates of which
half are near-copies of others, beside the plain greedy loop over all cosines, semhash (`from_embeddings`),
faiss (flat, exact) and the published double loop. Each measurement has a process of its own, so that its peak
memory is its own too: anonymous memory, which leaves out the pages of the map.

Needs 5.2 GB of disk in `--folder`, and semhash 0.5.0 and faiss-cpu 1.15.1 for their columns: both are for
this script alone and no extra of kshot (`pip install semhash==0.5.0 faiss-cpu==1.15.1`).

Writes benchmarks/results/data_selection.json. About eight minutes on two cores.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kshot.atomic import write_json
from kshot.corpus import relevance, select_data
from kshot.corpus.dedup import keep_distinct
from kshot.pipeline.environment import describe_environment

ROWS, DIMENSIONS, SHOTS, BUDGET = 1_000_000, 384, 50, 1_000
GROWTH, GROWTH_DIMENSIONS = (0.1, 1, 10), 256
CANDIDATES, THRESHOLD = (1_000, 5_000, 10_000), 0.9
REPEATS = 5
STRATEGIES = ("max", "centroid", "round_robin", "mmr")
MAX_RATIO, MAX_GB, MAX_DEDUP_SECONDS, MAX_GROWTH = 1.5, 1.0, 2.0, 1.5
RESULTS = Path(__file__).parent / "results" / "data_selection.json"
_BLOCK = 50_000


def main(num_rows: int, folder: Path, results: Path, candidates: tuple[int, ...]) -> None:
    busy = round(os.getloadavg()[0], 2)
    path = write_rows(folder / "scan.f16", num_rows, DIMENSIONS)
    scan = {
        "bare product": alone(measure_product, path),
        **{name: alone(measure_selection, path, DIMENSIONS, name) for name in STRATEGIES},
    }
    path.unlink()
    growth = []
    for factor in GROWTH:
        path = write_rows(folder / "growth.f16", int(num_rows * factor), GROWTH_DIMENSIONS)
        growth.append(alone(measure_selection, path, GROWTH_DIMENSIONS, "max"))
        path.unlink()
    dedup = {str(count): alone(measure_dedup, count) for count in candidates}
    per_row = [one["scan_ns_per_row"] for one in growth]
    largest = dedup[str(max(candidates))]
    found = {
        "load_average_before": busy,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "setting": f"{num_rows} x {DIMENSIONS} float16, {SHOTS} shots, budget {BUDGET}, median of {REPEATS}",
        "scan": scan,
        "growth": growth,
        "dedup": dedup,
        "met": {
            f"scan at most {MAX_RATIO} x the bare product": scan["max"]["scan_seconds"]
            <= MAX_RATIO * scan["bare product"]["seconds"],
            f"memory under {MAX_GB} GB": all(scan[name]["peak_gb"] < MAX_GB for name in STRATEGIES),
            f"cost a row within {MAX_GROWTH} x": max(per_row) <= MAX_GROWTH * min(per_row),
            "dedup identical to the plain greedy": all(one["kshot"]["identical"] for one in dedup.values()),
            f"dedup at most {MAX_DEDUP_SECONDS} s": largest["kshot"]["seconds"] <= MAX_DEDUP_SECONDS,
        },
    }
    print(json.dumps(found, indent=1))
    write_json(results, found | {"environment": describe_environment()})


def write_rows(path: Path, num_rows: int, dimensions: int) -> Path:
    """Write random unit rows."""
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, num_rows, _BLOCK):
            rows = draw.standard_normal((min(_BLOCK, num_rows - start), dimensions), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            rows.astype(np.float16).tofile(file)
    return path


def open_rows(path: Path, dimensions: int) -> np.ndarray:
    mapped = np.memmap(path, dtype=np.float16, mode="r")
    return mapped.reshape(-1, dimensions)


def shots_of(dimensions: int) -> np.ndarray:
    shots = np.random.default_rng(1).standard_normal((SHOTS, dimensions))
    return (shots / np.linalg.norm(shots, axis=1, keepdims=True)).astype(np.float32)


def measure_product(path: Path) -> dict[str, Any]:
    """Time numpy's float32 product of rows in memory with the shots."""
    rows_ND = np.empty(open_rows(path, DIMENSIONS).shape, dtype=np.float32)
    for start in range(0, len(rows_ND), _BLOCK):
        rows_ND[start : start + _BLOCK] = open_rows(path, DIMENSIONS)[start : start + _BLOCK]
    shots_DK = np.ascontiguousarray(shots_of(DIMENSIONS).T)
    out_NK = np.empty((len(rows_ND), SHOTS), dtype=np.float32)
    seconds = timed(lambda: np.matmul(rows_ND, shots_DK, out=out_NK))
    return {"seconds": seconds, "ns_per_row": per_row(seconds, len(rows_ND))}


def measure_selection(path: Path, dimensions: int, strategy: Any) -> dict[str, Any]:
    """Time the scan, and the whole selection, over rows in the page cache."""
    rows_ND, shots_KD = open_rows(path, dimensions), shots_of(dimensions)
    _warm(path)
    scan = timed(lambda: relevance(rows_ND, shots_KD, "centroid" if strategy == "centroid" else "max"))
    with peak_anonymous() as peak:
        whole = timed(
            lambda: select_data(rows_ND, shots_KD, budget=min(BUDGET, len(rows_ND)), strategy=strategy)
        )
    return {
        "rows": len(rows_ND),
        "strategy": strategy,
        "scan_seconds": scan,
        "scan_ns_per_row": per_row(scan, len(rows_ND)),
        "selection_seconds": whole,
        "peak_gb": round(peak[0] / 1e9, 3),
    }


def measure_dedup(count: int) -> dict[str, Any]:
    """Time greedy dedup of candidates in order, ours and others'."""
    rows_CD = candidate_rows(count)
    order = np.arange(count)
    expected, seconds = greedy(rows_CD)
    kept: list[int] = []

    def ours() -> None:
        kept[:] = keep_distinct(rows_CD, [order], threshold=THRESHOLD, budget=count)[0]

    found: dict[str, Any] = {
        "plain greedy": {"seconds": seconds, "kept": len(expected)},
        "kshot": {"seconds": timed(ours), "kept": len(kept), "identical": kept == expected},
    }
    for name, package, run in (
        ("semhash", "semhash", by_semhash),
        ("faiss flat", "faiss", by_faiss),
        ("published double loop", None, by_published_loop),
    ):
        if package and find_spec(package) is None:
            found[name] = f"not measured: {package} is not installed"
            continue
        started = time.perf_counter()
        rows = run(rows_CD)
        found[name] = {
            "seconds": round(time.perf_counter() - started, 3),
            "kept": len(rows),
            "identical": rows == expected,
            "wrongly_dropped": len(set(expected) - set(rows)),
            "wrongly_kept": len(set(rows) - set(expected)),
        }
    return found


def candidate_rows(count: int) -> np.ndarray:
    """Return float32 unit rows of which half are near-copies, in chains of three on average."""
    draw = np.random.default_rng(2)
    rows = draw.standard_normal((count, DIMENSIONS)).astype(np.float32)
    for place in range(1, count):
        if draw.random() < 0.5:
            rows[place] = rows[max(0, place - draw.integers(1, 40))]
            rows[place] += draw.uniform(0.2, 0.6) * draw.standard_normal(DIMENSIONS).astype(np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def greedy(rows_CD: np.ndarray) -> tuple[list[int], float]:
    started = time.perf_counter()
    rows = rows_CD.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kept: list[int] = []
    for place in range(len(rows)):
        if not kept or (rows[kept] @ rows[place]).max() <= THRESHOLD:
            kept.append(place)
    return kept, round(time.perf_counter() - started, 3)


def by_semhash(rows_CD: np.ndarray) -> list[int]:
    """The default index, which is approximate; records are numbers, so that rows can be told."""
    from semhash import SemHash

    class NoEncoder:
        def encode(self, texts: list[str], **options: Any) -> np.ndarray:
            raise NotImplementedError

    records = [str(place) for place in range(len(rows_CD))]
    index = SemHash.from_embeddings(rows_CD, records, NoEncoder())
    return sorted(int(record) for record in index.self_deduplicate(threshold=THRESHOLD).selected)


def by_faiss(rows_CD: np.ndarray) -> list[int]:
    """Every pair above the threshold from an exact index, then greedy over the lists."""
    import faiss

    index = faiss.IndexFlatIP(rows_CD.shape[1])
    index.add(rows_CD)
    limits, _, others = index.range_search(rows_CD, THRESHOLD)
    is_kept = np.zeros(len(rows_CD), dtype=bool)
    for place in range(len(rows_CD)):
        near = others[limits[place] : limits[place + 1]]
        is_kept[place] = not is_kept[near[near < place]].any()
    return np.flatnonzero(is_kept).tolist()


def by_published_loop(rows_CD: np.ndarray) -> list[int]:
    """Every pair in Python, in which a row that was removed still removes others."""
    removed = set()
    for one in range(len(rows_CD)):
        for other in range(one + 1, len(rows_CD)):
            if rows_CD[one] @ rows_CD[other] > THRESHOLD:
                removed.add(other)
    return [place for place in range(len(rows_CD)) if place not in removed]


def timed(run: Callable[[], Any]) -> float:
    """Return the median wall time."""
    run()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return round(median(seconds), 4)


def per_row(seconds: float, num_rows: int) -> float:
    return round(seconds / num_rows * 1e9, 1)


@contextmanager
def peak_anonymous() -> Iterator[list[int]]:
    """Hold the most bytes of anonymous memory, looked at every 5 ms (Linux)."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def _warm(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def alone(measure: Callable[..., Any], *given: Any) -> Any:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *given).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    parser.add_argument("--folder", type=Path, help="for the rows; a temporary one by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.folder) as temporary:
        main(args.rows, Path(temporary), args.results, tuple(args.candidates))
