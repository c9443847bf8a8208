"""Is a prediction right? Scorers of generated text, and the choice that a likelihood or a text names.

C: choices of one question.
"""

import difflib
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import numpy as np

from kshot.errors import ConfigError, ExampleError
from kshot.evaluation.code_scorer import code
from kshot.evaluation.sandbox import open_sandbox
from kshot.evaluation.sql_scorer import sql
from kshot.examples import Example

Scorer = Callable[[str, Example], bool]

_ANSWER_IS = re.compile(r"\bthe\s+(?:(?:correct|final|right)\s+)?answer\s+is\b\s*:?\s*", re.IGNORECASE)
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![\w.)\]%])[-−])?[$€£]?(?P<late_sign>(?<=[$€£])[-−])?  # "7-3", "GPT-4": no sign
    (?:
      (?:(?P<whole>\d{1,400})[ ])?(?<!/)(?P<top>\d{1,400})[ ]?/[ ]?(?P<bottom>0*[1-9]\d{0,400})(?![\d/]|\.\d)
    | (?P<decimal>
        (?:\d{1,3}(?:,\d{3}){1,100}(?!\d)|\d{1,400})(?:\.\d{1,400})?     # limits: int() refuses 4,300 digits
      | (?<!\d)\.\d{1,400}
      )(?P<exponent>[eE][+-]?\d{1,3}(?!\w))?
    )""",
    re.VERBOSE,
)
_NAMED = r"\b(?:answer|solution|option|choice|ending)\s?(?P<number>\d{1,2})\b"
_LEADING_LABEL = re.compile(rf"\(?(?P<letter>[A-Z])(?:\)|[.:](?=\s|$)|$)|{_NAMED}", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LABEL = re.compile(rf"\((?P<letter>[A-Z])\)|{_NAMED}", re.IGNORECASE)


def exact_match(prediction: str, example: Example) -> bool:
    """Say whether prediction and gold answer are the same text once both are normalised."""
    return normalise_answer(prediction) == normalise_answer(example.gold)


def normalise_answer(text: str) -> str:
    """Return the answer in lower case, with single spaces, without trailing periods.

    The answer is what follows the last "the answer is" (or "the correct answer is"): a rationale may come
    first.
    """
    return " ".join(_answer_of(text).casefold().split()).rstrip(".").rstrip()


def normalised_match(prediction: str, example: Example) -> bool:
    """Say whether prediction and gold answer are the same but for case, articles, punctuation and white space.

    A gold answer of which nothing is left (`?`, `the`) is compared as `exact_match` does.

    Reference: SQuAD, `normalize_answer` (Rajpurkar et al. 2016); the answer is what follows the last "the answer is".
    """
    gold = _squad_form(example.gold)
    return _squad_form(prediction) == gold if gold else exact_match(prediction, example)


def _squad_form(text: str) -> str:
    bare = _answer_of(text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", bare).split())


def number(prediction: str, example: Example) -> bool:
    """Say whether the last number of the prediction equals the last number of the gold answer, exactly.

    A prediction without a number is wrong.

    Raises:
        ExampleError: The gold answer has no number.
    """
    gold = last_number(example.gold)
    if gold is None:
        raise ExampleError(
            f"scorer number expects a number in the answer of {example.id or 'the example'}, "
            f"got {example.gold[:60]!r}: use scorer exact_match"
        )
    return last_number(prediction) == gold


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text, None if there is none.

    Read are signs, decimals, thousands commas, exponents, fractions and mixed numbers (`-1,234.5`, `2e3`,
    `1/2`, `2 1/2`). Currency and percent signs are units and change nothing: 50% is 50.
    """
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    parts = matches[-1].groupdict()
    if parts["decimal"] is not None:
        value = Fraction(parts["decimal"].replace(",", "") + (parts["exponent"] or ""))
    else:
        value = int(parts["whole"] or 0) + Fraction(int(parts["top"]), int(parts["bottom"]))
    return -value if parts["sign"] or parts["late_sign"] else value


EXECUTING: Mapping[str, Scorer] = MappingProxyType({"code": code, "sql": sql})
"""Scorers that run what the model wrote."""

SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {"exact_match": exact_match, "normalised_match": normalised_match, "number": number, **EXECUTING}
)


def get_scorer(name: str) -> Scorer:
    """Return the scorer of generated text with this name.

    Raises:
        ConfigError: There is none; the message names the nearest.
        SandboxError: It runs what the model wrote, and this machine has no sandbox for it.
    """
    if name in EXECUTING:
        open_sandbox()
    if name in SCORERS:
        return SCORERS[name]
    nearest = difflib.get_close_matches(name, SCORERS, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"scorer of generated text must be one of {', '.join(SCORERS)}, got {name!r}: "
        f"did you mean {nearest!r}?"
    )


@dataclass(frozen=True, slots=True)
class ChoicePrediction:
    """The likeliest choice, by three measures of likelihood.

    Attributes:
        raw: Least summed NLL; lm-eval's `acc`.
        by_characters: Least NLL per character of the choice's text, without the space before it; lm-eval's
            `acc_norm`.
        by_tokens: Least NLL per token.
    """

    raw: int
    by_characters: int
    by_tokens: int


def predict_choice(
    nll_C: Sequence[float], choices: Sequence[str], num_tokens_C: Sequence[int]
) -> ChoicePrediction:
    """Pick the likeliest choice; ties go to the lower index.

    Args:
        nll_C: Negative log-likelihood of each choice, in nats, summed over its tokens.
        choices: Text of each choice.
        num_tokens_C: Tokens that each sum runs over.

    Raises:
        ExampleError: Lengths differ, a choice is empty, or a likelihood is NaN.

    Reference: EleutherAI lm-evaluation-harness, `multiple_choice` tasks.
    """
    if not len(choices) == len(nll_C) == len(num_tokens_C) > 0:
        raise ExampleError(
            "expected an NLL, a text and a token count for each choice, "
            f"got {len(nll_C)}, {len(choices)} and {len(num_tokens_C)}"
        )
    for index, (nll, choice, num_tokens) in enumerate(zip(nll_C, choices, num_tokens_C, strict=True)):
        if not choice or num_tokens < 1:
            raise ExampleError(
                f"expected text in every choice, got {choice!r} of {num_tokens} tokens as choice {index}"
            )
        if np.isnan(nll):
            raise ExampleError(
                f"expected an NLL for every choice, got NaN for choice {index}: the model overflows"
            )
    sums_C = np.asarray(nll_C, dtype=np.float64)
    return ChoicePrediction(
        raw=int(np.argmin(sums_C)),
        by_characters=int(np.argmin(sums_C / np.array([len(choice) for choice in choices]))),
        by_tokens=int(np.argmin(sums_C / np.asarray(num_tokens_C))),
    )


def read_choice(prediction: str, choices: Sequence[str]) -> int | None:
    """Return the choice that a generated text names, None if it names none.

    Tried in this order: the answer is the text of a choice; it starts with a label (`(B)`, `B.`, `B`,
    `answer2`); the last label anywhere (`(B)` or `answer2`). Labels outside of the choices are passed over.
    """
    texts = [normalise_answer(choice) for choice in choices]
    answer = normalise_answer(prediction)
    if answer in texts:
        return texts.index(answer)
    leading = _LEADING_LABEL.match(_answer_of(prediction))
    labels = [leading] if leading else []
    for match in labels + list(_LABEL.finditer(prediction))[::-1]:
        if 0 <= (index := _index_of(match)) < len(choices):
            return index
    return None


def labelled_answers(output: str, choices: Sequence[str], label: int) -> tuple[str, ...] | None:
    """Return what each choice would be called in place of the right one, up to its letter or number.

    "The answer is (B) fire" becomes "The answer is (A", "The answer is (B" and so on; "the correct answer is
    answer2" becomes "the correct answer is answer1" and so on.

    Args:
        output: The right response.
        choices: Of the question.
        label: Index of the right one.

    Returns:
        An answer for each choice; None where the output does not name the right one by letter or number.
    """
    after = len(output) - len(_ANSWER_IS.split(output)[-1])
    leading = _LEADING_LABEL.match(output, after)
    for match in ([leading] if leading else []) + list(_LABEL.finditer(output)):
        if _index_of(match) == label:
            kind = "number" if match["letter"] is None else "letter"
            first = "1" if kind == "number" else "A" if match["letter"].isupper() else "a"
            names = [str(i + 1) if kind == "number" else chr(ord(first) + i) for i in range(len(choices))]
            return tuple(output[: match.start(kind)] + name for name in names)
    return None


def _index_of(match: re.Match[str]) -> int:
    letter = match["letter"]
    return int(match["number"]) - 1 if letter is None else ord(letter.upper()) - ord("A")


def _answer_of(text: str) -> str:
    """Return what follows the last "the answer is", the whole text if nothing does."""
    return _ANSWER_IS.split(text)[-1].strip() or text.strip()
