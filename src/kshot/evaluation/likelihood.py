"""Multiple choice by likelihood: of each choice's text after the bare question, or of each option's letter.

C: choices of one question.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kshot.decoding import OnRows
from kshot.errors import ExampleError
from kshot.evaluation.choices import ChoicePrediction, labelled_answers, predict_choice
from kshot.evaluation.judging import choices_of
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.progress import Advance
from kshot.prompts import prompt_of


@dataclass(frozen=True, slots=True)
class ScoredChoices:
    """The choices of one question, scored.

    Attributes:
        nll: Summed negative log-likelihood of each, in nats.
        taken: The likeliest, by three measures.
    """

    nll: tuple[float, ...]
    taken: ChoicePrediction


def score_texts(
    lm: LanguageModel, examples: Sequence[Example], progress: Advance | None, on_rows: OnRows | None
) -> list[ScoredChoices]:
    """Score the text of each choice after the bare question; arguments as `kshot.evaluate`.

    Raises:
        ExampleError: An example has no choices.
    """
    targets = [choices_of(example)[0] for example in examples]
    prompts = [prompt_of(example, "cloze") for example in examples]
    nll = _target_nll(lm, prompts, targets, progress, on_rows)
    return [_scored(group, choices) for group, choices in zip(nll, targets, strict=True)]


def score_letters(
    lm: LanguageModel, examples: Sequence[Example], progress: Advance | None, on_rows: OnRows | None
) -> list[int]:
    """Return the choice whose letter or number is likeliest after the prompt that lists the options.

    Args:
        lm: The model as it is now.
        examples: `output` of each names the right option by letter or number.
        progress: Called with the number of choices just scored.
        on_rows: As `kshot.evaluate`.

    Raises:
        ExampleError: An output names no letter or number.
    """
    targets = []
    for example in examples:
        answers = labelled_answers(example.output, *choices_of(example))
        if answers is None:
            raise ExampleError(
                f"{example.id}: expected an output that names the right option by letter or number, got "
                f"{example.output[:60]!r}: leave letter out of evaluation.beside"
            )
        targets.append(answers)
    prompts = [prompt_of(example, "instruction") for example in examples]
    nll = _target_nll(lm, prompts, targets, progress, on_rows)
    return [_scored(group, answers).taken.raw for group, answers in zip(nll, targets, strict=True)]


def _target_nll(
    lm: LanguageModel,
    prompts: Sequence[str],
    targets: Sequence[Sequence[str]],
    progress: Advance | None,
    on_rows: OnRows | None,
) -> list[list[np.ndarray]]:
    """Return the token NLL of each target, grouped by prompt."""
    owners = [index for index, group in enumerate(targets) for _ in group]
    texts = [text for group in targets for text in group]
    rows = [lm.template.encode(prompts[owner], text) for owner, text in zip(owners, texts, strict=True)]
    named = on_rows and (lambda places: on_rows([owners[place] for place in places]))
    groups: list[list[np.ndarray]] = [[] for _ in prompts]
    for owner, values in zip(owners, lm.token_nll(rows, progress=progress, on_rows=named), strict=True):
        groups[owner].append(values)
    return groups


def _scored(nll: Sequence[np.ndarray], texts: Sequence[str]) -> ScoredChoices:
    sums_C = tuple(float(values.sum()) for values in nll)
    return ScoredChoices(sums_C, predict_choice(sums_C, texts, [len(values) for values in nll]))
