"""Ask a model the test questions and compare its answers: accuracy, standard error, every prediction."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kshot.decoding import OnRows
from kshot.errors import ExampleError
from kshot.evaluation.scorers import Scorer, get_scorer, predict_choice, read_choice
from kshot.evaluation.statistics import mean_and_stderr
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.progress import Advance
from kshot.prompts import prompt_of

MULTIPLE_CHOICE = "multiple_choice"


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        id: Of the example.
        request: What was asked.
        prediction: The generated text, or the choice taken.
        gold: What was right.
        correct: Whether it counts, by the task's scorer.
        details: For multiple choice by likelihood: summed NLL of each choice, and the choice by each rule.
    """

    id: str
    request: str
    prediction: str
    gold: str
    correct: bool
    details: dict[str, Any] = field(default_factory=dict)

    def to_row(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Accuracy over examples.

    Attributes:
        accuracy: Share of right answers.
        stderr: Its standard error; None for a single example.
        n: Number of examples.
        predictions: One an example, in order.
        other: Further accuracies; for multiple choice lm-eval's `acc` and `acc_norm`, and by tokens.
    """

    accuracy: float
    stderr: float | None
    n: int
    predictions: tuple[Prediction, ...]
    other: dict[str, float] = field(default_factory=dict)

    @property
    def correct(self) -> list[bool]:
        """Right or wrong, one an example."""
        return [prediction.correct for prediction in self.predictions]

    def summary(self) -> dict[str, Any]:
        """Return the numbers without the predictions."""
        return {"accuracy": self.accuracy, "stderr": self.stderr, "n": self.n, "other": self.other}


def evaluate(
    lm: LanguageModel,
    examples: Sequence[Example],
    *,
    scorer: str = "exact_match",
    listed: bool = False,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    progress: Advance | None = None,
    on_rows: OnRows | None = None,
) -> EvaluationResult:
    """Evaluate a model.

    Args:
        lm: The model as it is now, adapters included.
        examples: With `choices` and `label` for `multiple_choice`.
        scorer: `exact_match` and `number` compare a greedy answer; `multiple_choice` takes the choice whose
            text is likeliest after the bare question, NLL divided by characters.
        listed: Multiple choice by a generated answer to the prompt that lists the options.
        max_new_tokens: Longest generated answer.
        batch_size: Rows decoded at once.
        progress: Called with the number of examples, or of choices, just done.
        on_rows: Called before each forward pass with the indices of the examples in it, in order.

    Raises:
        ConfigError: The scorer is unknown.
        ExampleError: An example lacks what the scorer needs.
    """
    if scorer == MULTIPLE_CHOICE and not listed:
        return _by_likelihood(lm, examples, progress, on_rows)
    judge = judge_of(scorer)
    prompts = [prompt_of(example, "instruction") for example in examples]
    answers = lm.generate(
        prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress, on_rows=on_rows
    )
    predictions = [
        Prediction(example.id, prompt, answer, example.gold, judge(answer, example))
        for example, prompt, answer in zip(examples, prompts, answers, strict=True)
    ]
    return _result(predictions)


def judge_of(scorer: str) -> Scorer:
    """Return what compares a generated answer with the right one.

    Raises:
        ConfigError: The scorer is unknown.
    """
    return _judge_choice if scorer == MULTIPLE_CHOICE else get_scorer(scorer)


def _judge_choice(answer: str, example: Example) -> bool:
    choices, label = _choices(example)
    return read_choice(answer, choices) == label


def _by_likelihood(
    lm: LanguageModel, examples: Sequence[Example], progress: Advance | None, on_rows: OnRows | None
) -> EvaluationResult:
    owners = [(index, choice) for index, example in enumerate(examples) for choice in _choices(example)[0]]
    rows = [lm.template.encode(prompt_of(examples[index], "cloze"), choice) for index, choice in owners]
    named = on_rows and (lambda choices: on_rows([owners[choice][0] for choice in choices]))
    nll = lm.token_nll(rows, progress=progress, on_rows=named)
    sums: list[list[float]] = [[] for _ in examples]
    lengths: list[list[int]] = [[] for _ in examples]
    for (index, _), values in zip(owners, nll, strict=True):
        sums[index].append(float(values.sum()))
        lengths[index].append(len(values))
    predictions, hits = [], []
    for example, sums_C, lengths_C in zip(examples, sums, lengths, strict=True):
        choices, label = _choices(example)
        taken = predict_choice(sums_C, choices, lengths_C)
        rules = {"acc": taken.raw, "acc_norm": taken.by_characters, "acc_tokens": taken.by_tokens}
        hits.append({rule: choice == label for rule, choice in rules.items()})
        details = {"nll": [round(value, 5) for value in sums_C], **rules}
        chosen, gold = choices[taken.by_characters], choices[label]
        right = taken.by_characters == label
        predictions.append(Prediction(example.id, prompt_of(example, "cloze"), chosen, gold, right, details))
    return _result(predictions, {rule: float(np.mean([hit[rule] for hit in hits])) for rule in hits[0]})


def _choices(example: Example) -> tuple[tuple[str, ...], int]:
    if not example.choices or example.label is None:
        raise ExampleError(
            f"{example.id}: expected choices and label for the scorer multiple_choice, got none; "
            "add them or use another scorer"
        )
    return example.choices, example.label


def _result(predictions: list[Prediction], other: dict[str, float] | None = None) -> EvaluationResult:
    estimate = mean_and_stderr([prediction.correct for prediction in predictions])
    stderr = None if estimate.n == 1 else estimate.stderr
    return EvaluationResult(estimate.mean, stderr, estimate.n, tuple(predictions), other or {})
