"""The run folder: every file name, the stages that are finished, and what each of them read.

A stage fills a draft folder that is renamed into place with `stage.json` inside. It holds a hash of all that
the stage read, so that a changed setting reruns only the stages that depend on it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self

from kshot.atomic import new_folder, remove_drafts, write_json, write_text
from kshot.errors import RunFolderError, reason_of
from kshot.events import WHOLE_RUN, EventLog
from kshot.nearest import nearest_path
from kshot.peak_memory import peak_memory

Stage = Literal["screening", "experts", "data", "single", "expert", "choice", "eval"]
STAGES: tuple[Stage, ...] = ("screening", "experts", "data", "single", "expert", "choice", "eval")

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"  # see kshot.events
LOGS = "logs"  # of training, where the tracker writes files
REPORT = "report.html"
MARK = "stage.json"

SCORE_STORE = ".scores.jsonl"
ORDER = "order.json"  # screening/, of banks too large for one shot of each adapter
SCREENING = "screening.json"  # experts/, of banks too large to be scored whole
SCORES = "scores.json"
SCORE_SECONDS = "seconds.json"
SIMILARITY = "similarity.json"
SELECTION = "selection.json"
SELECTED = "selected.jsonl"  # data/
DROPPED = "dropped.jsonl"
DATA_SUMMARY = "summary.json"
DATA_MAP = "map.json"  # where shots, kept rows and a sample of the pool lie
ADAPTER = "adapter"  # single/, expert/, and choice/ where what was chosen is not trained
TRAINING = "training.json"
CHOICE = "choice.json"  # choice/
HELD_OUT = "held_out.json"
PREDICTIONS = "predictions.json"  # eval/<arm>/
TOKEN_EXPERTS = "token_experts.json"  # eval/tuned_mixture/
RESULTS = "results.json"  # eval/


# Where the adapter of an arm lies, if it is what the run hands over; the base model has none.
_HOLDS: dict[str, Stage | None] = {
    "base": None,
    "best_single": "choice",
    "best_single_tuned": "single",
    "uniform_mixture": "choice",
    "tuned_mixture": "expert",
}


def digest(value: Any) -> str:
    """Return a hash of any JSON value."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class RunFolder:
    """One run on disk.

    Args:
        root: Made if it is not there.

    Raises:
        RunFolderError: It cannot be written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._stage = WHOLE_RUN
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._events: EventLog | None = EventLog(self.root / EVENTS)
        except OSError as error:
            raise RunFolderError(
                f"expected a run folder that can be written, got {self.root}: {error.strerror}; "
                "choose another with --out"
            ) from error
        for folder in (self.root, self.root / "eval"):
            remove_drafts(folder)

    @classmethod
    def existing(cls, root: str | Path) -> Self:
        """Open a run to read it: nothing in the folder is written, made or removed.

        Raises:
            RunFolderError: It is not there.
        """
        root = Path(root)
        if not (root / CONFIG).is_file():
            found = f"no {CONFIG} in it" if root.is_dir() else "a file" if root.is_file() else "none"
            raise RunFolderError(
                f"expected a run folder at {root}, found {found}; "
                f"make one with 'kshot run'{nearest_path(root)}"
            )
        return cls.read_only(root)

    @classmethod
    def read_only(cls, root: str | Path) -> Self:
        """Return a run that is read and never written, whether it is there or not."""
        run = cls.__new__(cls)
        run.root, run._stage, run._events = Path(root), WHOLE_RUN, None
        return run

    def path(self, *parts: str) -> Path:
        """Return the path of a file of the run."""
        return self.root.joinpath(*parts)

    def is_finished(self, stage: str, reads: str) -> bool:
        """Whether a stage is there and read exactly this."""
        mark = self.path(stage, MARK)
        try:
            return bool(json.loads(mark.read_text(encoding="utf-8"))["reads"] == reads)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is made again
            return False

    def wrote(self, stage: str) -> str:
        """Return the hash that later stages depend on: of all that a finished stage read."""
        mark: dict[str, str] = json.loads(self.path(stage, MARK).read_text(encoding="utf-8"))
        return mark["reads"]

    @contextmanager
    def stage(self, stage: str, reads: str) -> Iterator[Path]:
        """Yield a stage's draft folder; it takes its place, marked, when the block ends without an error."""
        with self.watched(stage) as started, new_folder(self.path(stage)) as draft:
            yield draft
            seconds = round(time.monotonic() - started, 1)
            write_json(draft / MARK, {"reads": reads, "seconds": seconds, **peak_memory()})

    @contextmanager
    def watched(self, stage: str, **fields: Any) -> Iterator[float]:
        """Write that a stage has started, and has finished or failed; events of the block are its own.

        Args:
            stage: `run` for the whole.
            fields: Of the start.

        Yields:
            When it started, by `time.monotonic`.
        """
        started, outer = time.monotonic(), self._stage
        self._stage = stage
        self.event("started", **fields)
        try:
            yield started
        except BaseException as error:
            with suppress(RunFolderError):  # such as a full disk, which is what is raised already
                self.event("failed", error=reason_of(error), interrupted=isinstance(error, KeyboardInterrupt))
            raise
        else:
            self.event("finished", seconds=round(time.monotonic() - started, 1))
        finally:
            self._stage = outer

    def event(self, kind: str, **fields: Any) -> None:
        """Add one line to `events.jsonl`, of the stage that is at work unless another is named."""
        if self._events is not None:
            self._events.write(kind, fields.pop("stage", self._stage), **fields)

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


def chosen_adapter(run: RunFolder) -> Path | None:
    """Return the folder of the adapter that a run hands over; None where it is the base model alone.

    A run that has made no choice yet hands over its tuned mixture.

    Raises:
        RunFolderError: Nothing is trained, or the choice is damaged or was made among other arms.
    """
    expert = run.path("expert", ADAPTER)
    if not expert.is_dir():
        raise RunFolderError(f"expected a trained expert in {expert}, found none: finish it with 'kshot run'")
    path = run.path("choice", CHOICE)
    if not path.is_file():
        return expert
    choice = run.read_json("choice", CHOICE)
    try:
        holds, made_of = _HOLDS[choice["chosen"]], choice["expert"]
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path}: expected what 'kshot run' writes, got something else; run 'kshot run' again"
        ) from error
    if made_of != run.wrote("expert"):
        raise RunFolderError(
            f"expected {path} to choose among arms that are there, got a choice from before the last "
            "training: finish it with 'kshot run'"
        )
    return None if holds is None else run.path(holds, ADAPTER)


def adapter_to_use(run: RunFolder) -> Path:
    """Return `chosen_adapter` where there must be one.

    Raises:
        RunFolderError: As `chosen_adapter`, or the run has chosen the base model.
    """
    adapter = chosen_adapter(run)
    if adapter is None:
        reason = run.read_json("choice", CHOICE)["reason"]
        raise RunFolderError(
            f"expected a run that hands over an adapter, got {run.root}, which chose the base model "
            f"({reason}): use the base as it is, or hand over the tuned mixture all the same by "
            "evaluation.folds: 0 and 'kshot run' again, which trains nothing"
        )
    return adapter
