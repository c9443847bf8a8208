"""`events.jsonl`: what a run is doing, for programs that watch it; one JSON object a line.

Each has `time` (UTC, ISO 8601, milliseconds), `event` and `stage`: `experts`, `data`, `single`, `expert`,
`choice`, `eval/<arm>`, or `run` for the whole.

    event      further fields
    started    of the run: until
    reused     of a stage that was finished before and read the same
    said       text                                          what a person was told
    progress   text, done, total                             of a bar: its first, its last, and one in 5 s
    metrics    step, steps, epoch, loss, learning_rate, grad_norm (null: not finite)
                                                             of training: the last, and one in a second
    failed     error; interrupted, true after Ctrl-C; the same command goes on from there
    finished   seconds

Lines are only ever added, each in one piece; the half of a line that a crash left is cut off by the next run.
Times differ from run to run: this is the one file of a run that is not made again to the byte.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kshot.errors import RunFolderError
from kshot.progress import Advance, Progress

PROGRESS_SECONDS = 5.0  # between lines of a bar: a day of training is 17,000 lines
METRICS_SECONDS = 1.0  # between lines of training: steps of a small model would be thousands a minute
WHOLE_RUN = "run"

Event = Callable[..., None]
"""Called with the kind of an event and its fields."""


class EventLog:
    """Adds lines to a file.

    Args:
        path: Made if it is not there.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        _cut_half_line(path)

    def write(self, event: str, stage: str, **fields: Any) -> None:
        """Add one line.

        Raises:
            RunFolderError: It cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": now, "event": event, "stage": stage, **_finite(fields)}
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode("utf-8", "replace"))
            finally:
                os.close(file)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.path}: {error.strerror}; free space or choose a folder you can write to"
            ) from error


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _cut_half_line(path: Path) -> None:
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


class Seldom:
    """Says when it is time again, at most once in so many seconds; the first time always."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._next = -math.inf

    def is_due(self) -> bool:
        """Whether it is time; asking when it is starts the wait for the next."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class LoggedProgress:
    """Shows progress through another, and writes it to the events at a bounded rate."""

    def __init__(self, event: Event, shown: Progress) -> None:
        self._event, self._shown = event, shown

    def say(self, text: str) -> None:
        """Show and write one line."""
        self._event("said", text=text)
        self._shown.say(text)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Advance]:
        """Show a bar; write where it is."""
        due, done, written = Seldom(PROGRESS_SECONDS), 0, -1

        def write() -> None:
            nonlocal written
            self._event("progress", text=text, done=done, total=total)
            written = done

        with self._shown.bar(text, total) as advance:

            def moved(units: int) -> None:
                nonlocal done
                done += units
                advance(units)
                if due.is_due():
                    write()

            yield moved
        if done != written:
            write()
