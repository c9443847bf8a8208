"""Adapters that may have been trained on the task itself, whose scores on the shots then mean little."""

import re
from collections.abc import Sequence

from kshot.bank import Adapter, Bank
from kshot.bank.row_hashes import row_hash, training_row_hashes
from kshot.errors import AdapterError
from kshot.examples import Example

LEAST_NAME = 3  # characters: shorter names, such as 'qa', are parts of too many others
_WORDS = re.compile(r"[a-z]+|\d+")


def flag_leaks(
    bank: Bank, task_name: str, shots: Sequence[Example], test: Sequence[Example] = ()
) -> dict[str, str]:
    """Find adapters whose training data, as far as it is known, overlaps a task.

    By rows: the adapter was trained on a row that asks what a shot or test row asks (hashes kept beside it).
    By name: that of the adapter or of its training data is the task's, or one holds the other, word by word
    and whatever is between the words: `arc-easy` and `arc_easy_train`, not `arc_easy` and `arc_challenge`.

    Args:
        bank: Its adapters say what they were trained on, or not.
        task_name: As in the task file.
        shots: Of the task.
        test: Of the task, if there are any; looked at for this alone.

    Returns:
        A reason for each such adapter; damaged hashes are one, nothing known is none.
    """
    asked = {row_hash(example): kind for kind, rows in (("test", test), ("shots", shots)) for example in rows}
    reasons = {adapter.name: _by_rows(adapter, asked) or _by_name(adapter, task_name) for adapter in bank}
    return {name: reason for name, reason in reasons.items() if reason}


def same_data(one: str, other: str) -> bool:
    """Whether two names of data are one, or the words of one hold those of the other, side by side."""
    shorter, longer = sorted((_words(one), _words(other)), key=len)
    if len("".join(shorter)) < LEAST_NAME:
        return False
    if "".join(shorter) == "".join(longer):
        return True
    starts = range(len(longer) - len(shorter) + 1)
    return any(longer[start : start + len(shorter)] == shorter for start in starts)


def _by_rows(adapter: Adapter, asked: dict[int, str]) -> str | None:
    try:
        trained_on = training_row_hashes(adapter) or frozenset()
    except AdapterError as error:
        return str(error)
    seen = [asked[key] for key in asked if key in trained_on]
    if not seen:
        return None
    counts = [f"{seen.count(kind)} of the {kind}" for kind in ("shots", "test") if kind in seen]
    return f"trained on {' and '.join(counts)}".replace("of the test", "of the test rows")


def _by_name(adapter: Adapter, task_name: str) -> str | None:
    entry = adapter.entry
    if entry.trained_on and same_data(entry.trained_on, task_name):
        return f"trained on {entry.trained_on}, which is called as the task, {task_name}"
    if same_data(adapter.name, task_name):
        return f"is called as the task, {task_name}"
    return None


def _words(name: str) -> list[str]:
    return _WORDS.findall(name.casefold())
