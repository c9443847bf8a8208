"""Rows that ask what shots, test rows or benchmarks ask, and what each of them is said to have matched."""

from pathlib import Path

import numpy as np

from kshot.corpus import Pool, read_pool
from kshot.corpus.decontamination import KeptOut, Match, rows_to_avoid
from kshot.corpus.survey import survey_pool
from kshot.examples import Example, write_examples

LONG = (
    "Nancy put eleven of the fifty one pictures from her trip into one album and the rest into eight others"
)


def _pool(tmp_path: Path, *examples: Example) -> Pool:
    write_examples(tmp_path / "open.jsonl", examples)
    return read_pool([str(tmp_path / "open.jsonl")])


def _exact(name: str) -> Match:
    return Match("exact", name, 1.0)


def test_names_what_each_row_matched(tmp_path: Path) -> None:
    shots = [Example("Add: 1, 2", "3", id="arc-12")]
    test = [
        Example("Which is hot? (A) ice (B) fire", "B", question="Which is hot?", id="arc-407"),
        Example("Translate", "chat", input="cat"),
    ]
    pool = _pool(
        tmp_path,
        Example("add 1 2", "three"),
        Example("Which is cold?", "ice"),
        Example("which is HOT", "fire"),
        Example("Pick one: Which is hot? fire, ice", "fire", question="Which is hot?"),
        Example("Translate", "Hund", input="dog"),
        Example("Translate", "Katze", input="Cat."),
        Example("Name a queen", "Ada", id="q"),
    )
    assert rows_to_avoid(pool, shots, test, {"royal.jsonl": [Example("Name a queen!", "Bea", id="7")]}) == {
        0: _exact("shot arc-12"),
        2: _exact("test row arc-407"),
        3: _exact("test row arc-407"),
        5: _exact("test row 2"),
        6: _exact("row of royal.jsonl: 7"),
    }


def test_names_the_shot_before_the_test_row(tmp_path: Path) -> None:
    shot = Example("ask", "x", question="why", id="s")
    test = Example("tell", "x", question="how", id="t")
    pool = _pool(tmp_path, Example("tell", "x", question="why"), Example("ask", "y"))
    assert rows_to_avoid(pool, [shot], [test, shot]) == {0: _exact("shot s"), 1: _exact("shot s")}


def test_an_empty_question_matches_nothing(tmp_path: Path) -> None:
    pool = _pool(tmp_path, Example("a", "b", question=" "))
    assert rows_to_avoid(pool, [Example("c", "d", question="\n")]) == {}
    assert rows_to_avoid(pool, []) == {}


def test_near_matches_in_request_and_output(tmp_path: Path) -> None:
    test = [Example("Answer:", "5", input=LONG, id="n"), *(Example(f"say {i}", "x") for i in range(3))]
    words = LONG.split()
    pool = _pool(
        tmp_path,
        Example(f"Explain. {LONG.upper()}!", "40 / 8 = 5"),
        Example("Write a problem about albums.", f"{' '.join(words[:12])} her bag"),
        Example(" ".join(words[:9]), "no more than that"),
        Example("Answer:", "5", input=f"{LONG}."),
    )
    found = rows_to_avoid(pool, [], test)
    assert {row: (match.kind, match.matched) for row, match in found.items()} == {
        0: ("near", "test row n"),
        1: ("near", "test row n"),
        3: ("exact", "test row n"),
    }
    assert found[1].share == 12 / 21
    assert str(found[1]) == "test row n (near, 57% of its words)"
    assert str(found[3]) == "test row n"


def test_invariant_blocks_do_not_change_what_is_found() -> None:
    kept_out = KeptOut([("shot", [Example(LONG, "5"), Example("b", "c")])])
    rows = [Example("b", "x"), Example(LONG, "y"), Example("z", LONG), Example("q", "r")]
    whole = kept_out.matches(rows)
    assert {place for place, row in enumerate(rows) if kept_out.matches([row])} == set(whole) == {0, 1, 2}


def test_survey_finds_matches_rows_without_rationale_and_keys_of_texts(tmp_path: Path) -> None:
    rows = [
        Example("one", "1", rationale="r"),
        Example("two", "2"),
        Example("three", "3"),
        Example("four", "4", rationale="r"),
    ]
    kept_out = KeptOut([("shot", [Example("Two?", "x", id="s")])])
    write_examples(tmp_path / "a.jsonl", rows[:2])
    write_examples(tmp_path / "b.jsonl", rows[2:])
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    steps: list[int] = []
    survey = survey_pool(read_pool(files), kept_out, needs_rationale=True, progress=steps.append)
    assert survey.matches == {1: _exact("shot s")}
    assert survey.without_rationale.tolist() == [2]
    assert survey.avoided.tolist() == [1, 2]
    assert sum(steps) == 4
    turned = survey_pool(read_pool(files[::-1]), kept_out)
    assert turned.without_rationale.size == 0
    assert turned.avoided.tolist() == [3]
    np.testing.assert_array_equal(turned.keys[[2, 3, 0, 1]], survey.keys)
    assert len(set(survey.keys.tolist())) == 4
