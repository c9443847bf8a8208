"""Rationale and stated answer out of what models say."""

import time

import pytest

from kshot.rationales.reading import Reading, read_answer


@pytest.mark.parametrize(
    ("text", "stated", "rationale"),
    [
        ("Answer: red\nBlood is red.", "red", "Blood is red."),
        ("answer: red\n\nBlood is red.\nSo it is.", "red", "Blood is red.\nSo it is."),
        ("**Answer:** red\n**Explanation:** Blood is red.", "red", "Blood is red."),
        ("**Answer: red**\nBlood is red.", "red", "Blood is red."),
        ("**Answer**: red\nBlood is red.", "red", "Blood is red."),
        ("### Final answer: 4\nReasoning: 2 + 2 is 4.", "4", "2 + 2 is 4."),
        ("The correct answer: 3.5\nHalf of 7.", "3.5", "Half of 7."),
        ("Answer: 4\n2 + 2 = 4", "4", "2 + 2 = 4"),
        ("Answer:\nred\n\nBlood is red.", "red", "Blood is red."),
        ("Answer: red. Blood is red. So it is.", "red.", "Blood is red. So it is."),
        ("Answer：红\n血是红的。", "红", "血是红的。"),
        ("Answer: __init__\nPython calls it.", "__init__", "Python calls it."),
    ],
)
def test_answer_first(text: str, stated: str, rationale: str) -> None:
    assert read_answer(text, "answer-first") == Reading(rationale, stated)


@pytest.mark.parametrize(
    ("text", "stated", "rationale"),
    [
        ("Blood is red.\nAnswer: red", "red", "Blood is red."),
        ("Blood is red. Answer: red", "red", "Blood is red."),
        ("Blood is red. The final answer: red", "red", "Blood is red."),
        ("Rationale: Blood is red.\n\n**Answer:** red", "red", "Blood is red."),
        ("2 + 2 is 4. So the answer is 4.\nAnswer: 4", "4", "2 + 2 is 4."),
        ("2 + 2 is 4.\nTherefore, the correct answer is 4.0 of them\nAnswer: 4", "4", "2 + 2 is 4."),
        (
            "The answer is 4 since 2 + 2 is 4. It adds up.\nAnswer: 4",
            "4",
            "The answer is 4 since 2 + 2 is 4. It adds up.",
        ),
    ],
)
def test_reason_first(text: str, stated: str, rationale: str) -> None:
    assert read_answer(text, "reason-first") == Reading(rationale, stated)


@pytest.mark.parametrize(
    ("text", "style", "problem"),
    [
        ("Blood is red.", "answer-first", "no answer line"),
        ("Answer2: red is one of them.", "answer-first", "no answer line"),
        ("Answer: red\nBlood is red.\nAnswer: red", "answer-first", "more than one answer line"),
        ("Blood is red.\nAnswer: red", "answer-first", "text before the answer line"),
        ("Answer: red\nBlood is red.", "reason-first", "the answer comes before the reasoning"),
        ("Blood is red.\nAnswer: red\nIs it not?", "reason-first", "text after the answer line"),
        ("Answer: red", "answer-first", "no rationale beside the answer"),
        ("Red.\nAnswer: red", "reason-first", "no rationale beside the answer"),
        ("So the answer is red.\nAnswer: red", "reason-first", "no rationale beside the answer"),
        ("Answer: red\nExplanation: ...", "answer-first", "no rationale beside the answer"),
        ("Blood is red.\nAnswer:", "reason-first", "no answer on its line"),
    ],
)
def test_what_is_turned_down(text: str, style, problem: str) -> None:
    assert read_answer(text, style).problem == problem


def test_an_answer_of_several_lines() -> None:
    program = "def f():\n    return 4"
    assert read_answer(f"It is four.\nAnswer:\n{program}", "reason-first", answer_lines=2) == Reading(
        "It is four.", program
    )
    assert read_answer(f"Answer:\n{program}\nIt is four.", "answer-first", answer_lines=2) == Reading(
        "It is four.", program
    )


def test_a_long_text_takes_no_time() -> None:
    began = time.perf_counter()
    for piece in (" ", "#", "**", "the answer is ", "answer ", "\n", ". the answer is a"):
        read_answer(piece * 50_000 + "Answer: 4", "reason-first")
    assert time.perf_counter() - began < 5
