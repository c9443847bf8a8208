"""Which choice is meant: by likelihood, or by what a text names.

C: choices of one question.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.errors import ExampleError
from kshot.evaluation.scorers import answer_of, normalise_answer

_NAMED = r"\b(?:answer|solution|option|choice|ending)\s?(?P<number>\d{1,2})\b"
_LEADING_LABEL = re.compile(rf"\(?(?P<letter>[A-Z])(?:\)|[.:](?=\s|$)|$)|{_NAMED}", re.IGNORECASE)
_LABEL = re.compile(rf"\((?P<letter>[A-Z])\)|{_NAMED}", re.IGNORECASE)


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


def choice_margin(nll_C: Sequence[float], choices: Sequence[str], label: int) -> float:
    """Return by how many nats per character the right choice is likelier than the best other.

    It is above 0 where `predict_choice` takes the right one by characters, and below where it does not.

    Args:
        nll_C: As for `predict_choice`.
        choices: Text of each choice, two or more.
        label: Index of the right one.
    """
    per_character_C = [nll / len(choice) for nll, choice in zip(nll_C, choices, strict=True)]
    best_other = min(value for index, value in enumerate(per_character_C) if index != label)
    return best_other - per_character_C[label]


def read_choice(prediction: str, choices: Sequence[str]) -> int | None:
    """Return the choice that a generated text names, None if it names none.

    Tried in this order: the answer is the text of a choice; it starts with a label (`(B)`, `B.`, `B`,
    `answer2`); the last label anywhere (`(B)` or `answer2`). Labels outside of the choices are passed over.
    """
    texts = [normalise_answer(choice) for choice in choices]
    answer = normalise_answer(prediction)
    if answer in texts:
        return texts.index(answer)
    leading = _LEADING_LABEL.match(answer_of(prediction))
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
    after = len(output.rstrip()) - len(answer_of(output))
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
