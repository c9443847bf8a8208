"""The hash of a row: equal for rows whose fingerprints are."""

import pytest

from kshot.corpus.row_hash import row_hash


def test_golden() -> None:
    """From `blake2b(b"name a colour\\0red", digest_size=8)`, read as a little-endian number."""
    assert row_hash("Name a colour.", "Red") == 0xED1E8A191339E510


@pytest.mark.parametrize(("request_", "output"), [("name  a colour", "RED."), ("“Name a colour”", "red")])
def test_equal(request_: str, output: str) -> None:
    assert row_hash(request_, output) == row_hash("Name a colour.", "Red")


@pytest.mark.parametrize(("request_", "output"), [("Name a colour.", "Blue"), ("Name a colour red", "")])
def test_different(request_: str, output: str) -> None:
    assert row_hash(request_, output) != row_hash("Name a colour.", "Red")


def test_half_surrogate_pairs() -> None:
    assert row_hash("\ud83d", "a") == row_hash("\ud83d", "A")
