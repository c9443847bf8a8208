"""A model's text -> the rationale in it and the answer that it states."""

import re
from dataclasses import dataclass

from kshot.rationales.prompt import Style

_MARK = re.compile(
    r"(?<!\S)(?:\#{1,6}[ ])?(?P<bold>\*\*)?(?:(?:the[ ])?(?:final|correct|right)[ ])?answer"
    r"(?P<closed>\*\*)?[:：](?P<closed_late>\*\*)?",
    re.IGNORECASE | re.VERBOSE,
)
_HEADING = re.compile(
    r"^(?:\#{1,6} )?\*{0,2}(?:explanation|rationale|reasoning|reason)\*{0,2}:\*{0,2}\s*", re.IGNORECASE
)
_CLOSING = re.compile(  # "So the answer is 4." at the end: kshot adds the answer itself
    r"(?:^|(?<=[.!?\n])\s*)(?:(?:so|thus|therefore|hence),? )?the (?:(?:correct|final|right) )?answer is"
    r"(?:(?![.!?]\s)[^\n])*$",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\w")
FEWEST_LETTERS = 3  # the form's "..." given back is no rationale; "2 + 2 = 4" is one
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Reading:
    """A text taken apart.

    Attributes:
        rationale: Without the answer line, headings and a closing "the answer is ...".
        stated: The answer on its line.
        problem: Why the text cannot be used; empty where it can.
    """

    rationale: str = ""
    stated: str = ""
    problem: str = ""


def read_answer(text: str, style: Style, *, answer_lines: int = 1) -> Reading:
    """Take rationale and answer out of a text with one line `Answer: ...`.

    Args:
        text: What the model said.
        style: Whether that line comes first or last.
        answer_lines: Lines of the right answer: one that has three may be stated in three.
    """
    text = text.strip()
    marks = list(_MARK.finditer(text))
    if len(marks) != 1:
        return Reading(problem="no answer line" if not marks else "more than one answer line")
    mark = marks[0]
    before, after = text[: mark.start()].strip(), text[mark.end() :].strip()
    if mark["bold"] and not (mark["closed"] or mark["closed_late"]):
        line, break_, rest = after.partition("\n")
        after = line.rstrip().removesuffix("**") + break_ + rest
    if style == "reason-first":
        return _reason_first(before, after, answer_lines)
    return _answer_first(before, after, answer_lines)


def _reason_first(before: str, after: str, answer_lines: int) -> Reading:
    if not before:
        return Reading(stated=after, problem="the answer comes before the reasoning")
    if len(after.splitlines()) > answer_lines:
        return Reading(stated=after, problem="text after the answer line")
    return _checked(before, after)


def _answer_first(before: str, after: str, answer_lines: int) -> Reading:
    if before:
        return Reading(stated=after, problem="text before the answer line")
    lines = after.splitlines()
    stated, rationale = "\n".join(lines[:answer_lines]), "\n".join(lines[answer_lines:])
    if not rationale.strip():  # all in one line: "Answer: red. Blood is red."
        stated, *rest = _SENTENCE_END.split(after, maxsplit=1)
        rationale = "".join(rest)
    return _checked(rationale, stated)


def _checked(rationale: str, stated: str) -> Reading:
    rationale = _CLOSING.sub("", _HEADING.sub("", rationale.strip())).strip()
    stated = stated.strip()
    if not stated:
        return Reading(rationale, problem="no answer on its line")
    too_short = len(_LETTER.findall(rationale)) < FEWEST_LETTERS
    if too_short or _bare(rationale) == _bare(stated):
        return Reading(rationale, stated, problem="no rationale beside the answer")
    return Reading(rationale, stated)


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!")
