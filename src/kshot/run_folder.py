"""The run folder: every file name, the stages that are finished, and what each of them read.

A stage fills a draft folder that is renamed into place with `stage.json` inside. It holds a hash of all that
the stage read, so that a changed setting reruns only the stages that depend on it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

from kshot.atomic import new_folder, remove_drafts, write_json, write_text
from kshot.errors import RunFolderError

Stage = Literal["experts", "data", "single", "expert", "eval"]
STAGES: tuple[Stage, ...] = ("experts", "data", "single", "expert", "eval")

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
REPORT = "report.html"
MARK = "stage.json"

SCORE_STORE = ".scores.jsonl"
SCORES = "scores.json"  # experts/
SCORE_SECONDS = "seconds.json"
SIMILARITY = "similarity.json"
SELECTION = "selection.json"
SELECTED = "selected.jsonl"  # data/
DATA_SUMMARY = "summary.json"
ADAPTER = "adapter"  # single/ and expert/
TRAINING = "training.json"
PREDICTIONS = "predictions.json"  # eval/<arm>/
RESULTS = "results.json"  # eval/


def digest(value: Any) -> str:
    """Return a hash of any JSON value."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return a hash of a file's bytes."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


class RunFolder:
    """One run on disk.

    Args:
        root: Made if it is not there.

    Raises:
        RunFolderError: It cannot be written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / EVENTS).touch()
        except OSError as error:
            raise RunFolderError(
                f"expected a run folder that can be written, got {self.root}: {error.strerror}; "
                "choose another with --out"
            ) from error
        for folder in (self.root, self.root / "eval"):
            remove_drafts(folder)

    def path(self, *parts: str) -> Path:
        """Return the path of a file of the run."""
        return self.root.joinpath(*parts)

    def is_finished(self, stage: str, reads: str) -> bool:
        """Whether a stage is there and read exactly this."""
        mark = self.path(stage, MARK)
        return mark.is_file() and bool(json.loads(mark.read_text(encoding="utf-8"))["reads"] == reads)

    def wrote(self, stage: str) -> str:
        """Return the hash that later stages depend on: of all that a finished stage read."""
        mark: dict[str, str] = json.loads(self.path(stage, MARK).read_text(encoding="utf-8"))
        return mark["reads"]

    @contextmanager
    def stage(self, stage: str, reads: str) -> Iterator[Path]:
        """Yield a stage's draft folder; it takes its place, marked, when the block ends without an error."""
        started = time.monotonic()
        self.event("stage_started", stage=stage)
        with new_folder(self.path(stage)) as draft:
            yield draft
            write_json(draft / MARK, {"reads": reads, "seconds": round(time.monotonic() - started, 1)})
        self.event("stage_finished", stage=stage, seconds=round(time.monotonic() - started, 1))

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line to `events.jsonl`."""
        line = json.dumps(
            {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "event": kind, **fields}
        )
        with self.path(EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read_json(self, *parts: str) -> Any:
        """Read a JSON file of the run.

        Raises:
            RunFolderError: It is not there or damaged.
        """
        path = self.path(*parts)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"expected {path}, cannot read it: {error}; run 'kshot run' first"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a file at the top of the run."""
        write_text(self.path(name), text)
