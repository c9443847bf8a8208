"""Is a prediction right? Scorers of generated text, and the choice that a likelihood or a text names.

C: choices of one question.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

import numpy as np

from kshot.errors import ConfigError, ExampleError
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


SCORERS: Mapping[str, Scorer] = MappingProxyType({"exact_match": exact_match, "number": number})


def get_scorer(name: str) -> Scorer:
    """Return the scorer of generated text with this name.

    Raises:
        ConfigError: There is none; the message names the nearest.
    """
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
        letter = match["letter"]
        index = int(match["number"]) - 1 if letter is None else ord(letter.upper()) - ord("A")
        if 0 <= index < len(choices):
            return index
    return None


def _answer_of(text: str) -> str:
    """Return what follows the last "the answer is", the whole text if nothing does."""
    return _ANSWER_IS.split(text)[-1].strip() or text.strip()
