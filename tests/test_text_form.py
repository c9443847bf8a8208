"""What a copy may change, and what counts as a word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.text_form import fingerprint, words_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  it?", "what is it"),
        ("  “Yes”, he said…", "yes he said"),
        ("ﬁne – STRASSE", "fine straße"),
        ("a\n\tb.", "A b"),
    ],
)
def test_fingerprint_is_equal(one: str, other: str) -> None:
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("one", "other"), [("2+3", "2*3"), ("(()", "())"), ("1.5", "15"), ("?", "!"), ("a b", "ab")]
)
def test_fingerprint_is_not_equal(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


@given(st.text())
def test_invariant_fingerprint_of_a_fingerprint(text: str) -> None:
    assert fingerprint(fingerprint(text)) == fingerprint(text)
    assert bool(fingerprint(text)) == bool(text.strip())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's (2+3)*x?", ["what", "s", "(", "2", "+", "3", ")", "*", "x"]),
        ("Die Größe, bitte!", ["die", "grösse", "bitte"]),
        ("今天天气 good", ["今", "天", "天", "气", "good"]),
        ("カメラ2台", ["カ", "メ", "ラ", "2", "台"]),
        (" ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words
