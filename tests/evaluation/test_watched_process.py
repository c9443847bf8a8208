"""How a process is said to have ended."""

import signal

import pytest

from kshot.evaluation.watched_process import how_it_died


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-signal.SIGKILL, "died of SIGKILL"),
        (128 + signal.SIGXCPU, "used up its processor time"),
        (3, "ended with code 3 before it was done"),
    ],
)
def test_how_it_died(code: int, words: str) -> None:
    assert how_it_died(code) == words
