"""Times as a person would say them."""

import pytest

from kshot.cli.dry_run import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((0.0, 0.5), "under 1 s"),
        ((3.2, 8.0), "3.2 to 8 s"),
        ((12.4, 60.0), "12 to 60 s"),
        ((480.0, 720.0), "8 to 12 min"),
        ((600.0, 605.0), "10 min"),
        ((7200.0, 36000.0), "2 to 10 h"),
    ],
)
def test_in_words(seconds: tuple[float, float], words: str) -> None:
    assert in_words(seconds) == words
