"""Ask a model the test questions and compare its answers: accuracy, standard error, every prediction."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from kshot.config import Beside
from kshot.decoding import OnRows
from kshot.errors import ConfigError
from kshot.evaluation.judging import MULTIPLE_CHOICE, Verdict, check_golds, choices_of, judge_all
from kshot.evaluation.likelihood import score_letters, score_texts
from kshot.evaluation.scorers import EXECUTING
from kshot.evaluation.statistics import mean_and_stderr
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.progress import Advance
from kshot.prompts import prompt_of


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer.

    Attributes:
        id: Of the example.
        request: What was asked.
        prediction: The generated text, or the choice taken.
        gold: What was right.
        correct: Whether it counts, by the task's scorer.
        details: For multiple choice by likelihood: summed NLL of each choice, the choice by each rule, and
            what was asked for beside it; of an answer that was run, its `outcome`.
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
        other: Further accuracies; for multiple choice lm-eval's `acc` and `acc_norm`, by tokens, and what was
            asked for beside them.
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
    beside: Sequence[Beside] = (),
    max_new_tokens: int = 128,
    batch_size: int = 64,
    progress: Advance | None = None,
    on_rows: OnRows | None = None,
) -> EvaluationResult:
    """Evaluate a model.

    Args:
        lm: The model as it is now, adapters included.
        examples: With `choices` and `label` for `multiple_choice`, tests as `answer` for `code`.
        scorer: `exact_match`, `normalised_match` and `number` compare a greedy answer; `code` and `sql` run
            it, in a sandbox; `multiple_choice` takes the choice whose text is likeliest after the bare
            question, NLL divided by characters.
        listed: Multiple choice by a generated answer to the prompt that lists the options.
        beside: Further ways to score multiple choice by likelihood: `letter`, the likeliest letter after the
            prompt that lists the options, and `generated`, as `listed`. Each is another pass over the
            examples.
        max_new_tokens: Longest generated answer.
        batch_size: Rows decoded at once.
        progress: Called with the number of units just done, `num_units` in all.
        on_rows: Called before each forward pass with the indices of the examples in it, in order.

    Raises:
        ConfigError: The scorer is unknown, or `beside` is asked of one that it does not belong to.
        ExampleError: An example lacks what the scorer needs.
        SandboxError: The scorer runs what the model wrote, and this machine has no sandbox for it.
    """
    check_golds(scorer, examples)
    by_likelihood = scorer == MULTIPLE_CHOICE and not listed
    if beside and not by_likelihood:
        raise ConfigError(
            f"beside belongs to multiple choice by likelihood, got {', '.join(beside)} with scorer {scorer}"
            f"{', options listed' if listed else ''}: leave it out"
        )

    def answer() -> list[str]:
        prompts = [prompt_of(example, "instruction") for example in examples]
        return lm.generate(
            prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress, on_rows=on_rows
        )

    if not by_likelihood:
        answers = answer()
        return _generated(examples, answers, judge_all(scorer, answers, examples, progress))
    result = _by_likelihood(lm, examples, progress, on_rows)
    if "letter" in beside:
        letters = score_letters(lm, examples, progress, on_rows)
        hits = [letter == choices_of(one)[1] for letter, one in zip(letters, examples, strict=True)]
        result = _with(result, "letter", letters, hits)
    if "generated" in beside:
        answers = answer()
        verdicts = judge_all(scorer, answers, examples)
        result = _with(result, "generated", answers, [verdict.correct for verdict in verdicts])
    return result


def num_units(
    examples: Sequence[Example], scorer: str, *, listed: bool = False, beside: Sequence[Beside] = ()
) -> int:
    """Return the units that `progress` of `evaluate` counts: choices, answers, and answers that are run."""
    if scorer != MULTIPLE_CHOICE or listed:
        return len(examples) * (2 if scorer in EXECUTING else 1)
    choices = sum(len(example.choices or ()) for example in examples)
    return choices * (2 if "letter" in beside else 1) + len(examples) * ("generated" in beside)


def _generated(
    examples: Sequence[Example], answers: Sequence[str], verdicts: Sequence[Verdict]
) -> EvaluationResult:
    return _result(
        [
            Prediction(
                example.id,
                prompt_of(example, "instruction"),
                answer,
                example.gold,
                verdict.correct,
                verdict.details,
            )
            for example, answer, verdict in zip(examples, answers, verdicts, strict=True)
        ]
    )


def _by_likelihood(
    lm: LanguageModel, examples: Sequence[Example], progress: Advance | None, on_rows: OnRows | None
) -> EvaluationResult:
    predictions, hits = [], []
    for example, scored in zip(examples, score_texts(lm, examples, progress, on_rows), strict=True):
        (choices, label), taken = choices_of(example), scored.taken
        rules = {"acc": taken.raw, "acc_norm": taken.by_characters, "acc_tokens": taken.by_tokens}
        hits.append({rule: choice == label for rule, choice in rules.items()})
        details = {"nll": [round(value, 5) for value in scored.nll], **rules}
        chosen, gold = choices[taken.by_characters], choices[label]
        right = taken.by_characters == label
        predictions.append(Prediction(example.id, prompt_of(example, "cloze"), chosen, gold, right, details))
    return _result(predictions, {rule: float(np.mean([hit[rule] for hit in hits])) for rule in hits[0]})


def _with(
    result: EvaluationResult, name: str, found: Sequence[int | str], hits: Sequence[bool]
) -> EvaluationResult:
    """Return a result with what another way of scoring found, and its accuracy."""
    predictions = tuple(
        replace(prediction, details=prediction.details | {name: value})
        for prediction, value in zip(result.predictions, found, strict=True)
    )
    return replace(result, predictions=predictions, other=result.other | {name: float(np.mean(hits))})


def _result(predictions: list[Prediction], other: dict[str, float] | None = None) -> EvaluationResult:
    estimate = mean_and_stderr([prediction.correct for prediction in predictions])
    stderr = None if estimate.n == 1 else estimate.stderr
    return EvaluationResult(estimate.mean, stderr, estimate.n, tuple(predictions), other or {})
