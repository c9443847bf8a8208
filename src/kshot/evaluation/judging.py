"""Is each of many answers right? What runs programs runs several at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kshot.endpoint import in_threads
from kshot.errors import ExampleError
from kshot.evaluation.choices import read_choice
from kshot.evaluation.code_scorer import PASSED, asserts_of, outcome_of_tests
from kshot.evaluation.sandbox import open_sandbox
from kshot.evaluation.scorers import EXECUTING, Scorer, get_scorer
from kshot.evaluation.sql_scorer import compare_queries, gold_query_of
from kshot.examples import Example
from kshot.progress import Advance

MULTIPLE_CHOICE = "multiple_choice"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scorer says of one answer.

    Attributes:
        correct: Whether it counts.
        details: `outcome` in words, where it was run.
    """

    correct: bool
    details: dict[str, Any] = field(default_factory=dict)


def judge_of(scorer: str) -> Scorer:
    """Return what compares a generated answer with the right one.

    Raises:
        ConfigError: The scorer is unknown.
        SandboxError: It runs what the model wrote, and this machine has no sandbox for it.
    """
    return _judge_choice if scorer == MULTIPLE_CHOICE else get_scorer(scorer)


def check_golds(scorer: str, examples: Sequence[Example]) -> None:
    """Look at every right answer, so that what the scorer cannot read is found before hours of work.

    Raises:
        ConfigError: The scorer is unknown.
        ExampleError: An example lacks what the scorer needs.
        SandboxError: As `judge_of`.
    """
    judge = judge_of(scorer)
    for example in examples:
        if scorer == "code":
            asserts_of(example)
        elif scorer == "sql":
            gold_query_of(example)
        else:
            judge("", example)


def judge_all(
    scorer: str, answers: Sequence[str], examples: Sequence[Example], progress: Advance | None = None
) -> list[Verdict]:
    """Compare answers with what is right.

    Args:
        scorer: By name.
        answers: One an example.
        examples: With the right answers.
        progress: Called with the number of answers just run; never for a scorer that runs nothing.

    Raises:
        ConfigError: The scorer is unknown.
        ExampleError: An example lacks what the scorer needs.
        SandboxError: As `judge_of`.
    """
    if scorer not in EXECUTING:
        judge = judge_of(scorer)
        return [Verdict(judge(answer, one)) for answer, one in zip(answers, examples, strict=True)]
    open_sandbox()
    verdicts: dict[int, Verdict] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    run = _run_query if scorer == "sql" else _run_program
    for index, verdict in in_threads(lambda index: run(answers[index], examples[index]), len(answers), cores):
        verdicts[index] = verdict
        if progress:
            progress(1)
    return [verdicts[index] for index in range(len(answers))]


def choices_of(example: Example) -> tuple[tuple[str, ...], int]:
    """Return choices and label of an example.

    Raises:
        ExampleError: It has none.
    """
    if not example.choices or example.label is None:
        raise ExampleError(
            f"{example.id}: expected choices and label for the scorer multiple_choice, got none; "
            "add them or use another scorer"
        )
    return example.choices, example.label


def _judge_choice(answer: str, example: Example) -> bool:
    choices, label = choices_of(example)
    return read_choice(answer, choices) == label


def _run_program(answer: str, example: Example) -> Verdict:
    outcome = outcome_of_tests(answer, example)
    return Verdict(outcome == PASSED, {"outcome": outcome})


def _run_query(answer: str, example: Example) -> Verdict:
    comparison = compare_queries(answer, example)
    return Verdict(comparison.correct, {"outcome": comparison.outcome})
