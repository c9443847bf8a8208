"""Is a prediction right? Scorers of generated text."""

import difflib
import re
import string
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType

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
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, example: Example) -> bool:
    """Say whether prediction and gold answer are the same text once both are normalised."""
    return normalise_answer(prediction) == normalise_answer(example.gold)


def normalise_answer(text: str) -> str:
    """Return the answer in lower case, with single spaces, without trailing periods.

    The answer is what follows the last "the answer is" (or "the correct answer is"): a rationale may come
    first.
    """
    return " ".join(answer_of(text).casefold().split()).rstrip(".").rstrip()


def answer_of(text: str) -> str:
    """Return what follows the last "the answer is", the whole text if nothing does."""
    return _ANSWER_IS.split(text)[-1].strip() or text.strip()


def normalised_match(prediction: str, example: Example) -> bool:
    """Say whether prediction and gold answer are the same but for case, articles, punctuation and spaces.

    A gold answer of which nothing is left (`?`, `the`) is compared as `exact_match` does.

    Reference: SQuAD, `normalize_answer` (Rajpurkar et al. 2016), of what follows the last "the answer is".
    """
    gold = _squad_form(example.gold)
    return _squad_form(prediction) == gold if gold else exact_match(prediction, example)


def _squad_form(text: str) -> str:
    bare = answer_of(text).lower().translate(_NO_PUNCTUATION)
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
