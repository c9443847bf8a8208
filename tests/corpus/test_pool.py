"""The pool: provenance, duplicates, and rows that match shots or test rows."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.corpus.pool import Pool, SkippedRows, fingerprint, read_pool, rows_to_avoid
from kshot.errors import ConfigError, SourceError
from kshot.examples import Example, write_examples


def _pool(*examples: Example) -> Pool:
    return Pool(examples, ("open",) * len(examples))


def test_read_pool_keeps_order_and_sources(tmp_path: Path) -> None:
    write_examples(
        tmp_path / "b_maths.jsonl", [Example("1+1", "2", id="sums-0"), Example("1*1", "1", id="sums-1")]
    )
    write_examples(tmp_path / "a_words.jsonl", [Example("hot", "cold", id="antonyms-0")])
    pool = read_pool([str(tmp_path / "b_maths.jsonl"), str(tmp_path / "a_*.jsonl")])
    assert [example.id for example in pool.examples] == ["sums-0", "sums-1", "antonyms-0"]
    assert pool.sources == ("b_maths", "b_maths", "a_words")
    assert pool.skipped == ()
    assert len(pool) == 3


def test_read_pool_drops_exact_duplicates_and_counts_them(tmp_path: Path) -> None:
    write_examples(
        tmp_path / "a.jsonl", [Example("Name a colour.", "Red"), Example("Name a colour.", "Blue")]
    )
    write_examples(
        tmp_path / "b.jsonl", [Example("name  a colour", "RED."), Example("Name a", "Red", input="colour")]
    )
    pool = read_pool([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert [example.output for example in pool.examples] == ["Red", "Blue"]
    assert pool.sources == ("a", "a")
    assert pool.skipped == (SkippedRows("b", "exact_duplicate", 2),)


def test_read_pool_refuses_no_source() -> None:
    with pytest.raises(ConfigError, match="expected at least one source in pool, got none"):
        read_pool([])


def test_read_pool_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a file at"):
        read_pool([str(tmp_path / "missing.jsonl")])


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
def test_fingerprint_differs(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


@given(st.text())
def test_invariant_white_space_around_changes_no_fingerprint(text: str) -> None:
    assert fingerprint(f" \n{text}\t") == fingerprint(text)
    assert bool(fingerprint(text)) == bool(text.strip())


def test_rows_to_avoid_names_what_each_row_matched() -> None:
    shots = [Example("Add: 1, 2", "3", id="arc-12")]
    test = [
        Example("Which is hot? (A) ice (B) fire", "B", question="Which is hot?", id="arc-407"),
        Example("Translate", "chat", input="cat"),
    ]
    pool = _pool(
        Example("add 1 2", "three"),
        Example("Which is cold?", "ice"),
        Example("which is HOT", "fire"),
        Example("Pick one: Which is hot? fire, ice", "fire", question="Which is hot?"),
        Example("Translate", "Hund", input="dog"),
        Example("Translate", "Katze", input="Cat."),
    )
    assert rows_to_avoid(pool, shots, test) == {
        0: "shot arc-12",
        2: "test row arc-407",
        3: "test row arc-407",
        5: "test row 2",
    }


def test_rows_to_avoid_names_the_shot_before_the_test_row() -> None:
    shot = Example("ask", "x", question="why", id="s")
    test = Example("tell", "x", question="how", id="t")
    pool = _pool(Example("tell", "x", question="why"), Example("ask", "y"))
    assert rows_to_avoid(pool, [shot], [test, shot]) == {0: "shot s", 1: "shot s"}


def test_an_empty_question_matches_nothing() -> None:
    assert rows_to_avoid(_pool(Example("a", "b", question=" ")), [Example("c", "d", question="\n")], []) == {}


def test_rows_to_avoid_of_nothing_is_empty() -> None:
    assert rows_to_avoid(_pool(Example("a", "b")), [], []) == {}


def test_without_leaves_the_other_rows_in_order() -> None:
    pool = Pool(tuple(Example(text, text) for text in "abcd"), ("x", "y", "z", "x"))
    rest = pool.without({1, 3})
    assert [example.instruction for example in rest.examples] == ["a", "c"]
    assert rest.sources == ("x", "z")
