"""The instruction and templates of one's own."""

from pathlib import Path

import pytest

from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.rationales import RationalePrompt
from kshot.rationales.prompt import checked_style

BARE = Example(
    "Which?", "blue", choices=("red", "blue"), label=1, question="Which colour has the sky?", id="sky"
)
LISTED = Example("Which? A) red B) blue", "B", choices=("red", "blue"), label=1, id="sky")
SUM = Example("What is 2 + 2?", "2 + 2 = 4\n#### 4", input="Count.", answer="4", id="sum")


def test_golden_answer_first() -> None:
    assert RationalePrompt().render(BARE, scorer="multiple_choice", style="answer-first") == (
        "Read this question and the answer that is known to be right. "
        "Think step by step about what leads from one to the other.\n\n"
        "Question:\nWhich colour has the sky?\n\n"
        "Choices:\n- red\n- blue\n\n"
        "Right answer:\nblue\n\n"
        "Explain in at most three plain sentences, about the content of the question, why this answer is "
        "right. "
        "State the answer first, then explain it. Reply in this form:\n\n"
        "Answer: blue\nExplanation: ..."
    )


def test_reason_first_asks_for_the_answer_last() -> None:
    text = RationalePrompt().render(SUM, scorer="number", style="reason-first")
    assert "Question:\nWhat is 2 + 2?\n\nCount.\n\nRight answer:\n4\n" in text
    assert text.endswith("Reply in this form:\n\nExplanation: ...\nAnswer: 4")
    assert "Choices" not in text


def test_choices_are_listed_once() -> None:
    text = RationalePrompt().render(LISTED, scorer="multiple_choice", style="answer-first")
    assert "Choices:" not in text
    assert "Right answer:\nblue\n" in text
    assert "Right answer:\nB\n" in RationalePrompt().render(
        LISTED, scorer="exact_match", style="answer-first"
    )


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(
        "{{ instruction }} ({{ output | upper }}) Größe.\nEnd with 'Answer: ...'.", encoding="utf-8"
    )
    assert RationalePrompt.read(file).render(BARE, scorer="number", style="reason-first") == (
        "Which? (BLUE) Größe.\nEnd with 'Answer: ...'."
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ question", "the prompt, line 1: expected a Jinja2 template, got"),
        ("{{ question }} {{ gold }} Answer:", "unknown variable 'gold'; known: answer, choices"),
        ("{{ answer }} Answer:", "expected {{ question }} in the template"),
        ("{{ question }}", "expected a prompt that asks for a line 'Answer: ...'"),
    ],
)
def test_a_template_that_cannot_work(source: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        RationalePrompt(source)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "expression",
    [
        "question.__class__.__mro__",
        "choices[7].x",
        "1 / 0",
        "question.format.__globals__",
        "range(10**9) | list",
    ],
)
def test_a_template_that_fails_on_an_example(expression: str) -> None:
    prompt = RationalePrompt("{{ question }} Answer: {{ " + expression + " }}", "own.txt")
    with pytest.raises(ConfigError, match=r"own.txt: fails on sum: .*; mend the template"):
        prompt.render(SUM, scorer="number", style="answer-first")


def test_a_template_that_renders_to_nothing() -> None:
    prompt = RationalePrompt("{% if not question %}Answer:{% endif %}")
    with pytest.raises(ConfigError, match="expected text for sum, got none"):
        prompt.render(SUM, scorer="number", style="answer-first")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; expected a template file"):
        RationalePrompt.read(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"{{ question }} \xff")
    with pytest.raises(ConfigError, match=r"latin.txt: expected UTF-8, got invalid start byte at byte 15"):
        RationalePrompt.read(tmp_path / "latin.txt")


def test_styles() -> None:
    assert checked_style("reason-first") == "reason-first"
    with pytest.raises(ConfigError, match="style must be one of answer-first, reason-first, got 'both'"):
        checked_style("both")
