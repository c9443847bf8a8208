"""What a run would cost, before it starts: hours by arm and task, from speeds and the rows' lengths.

Tokens are taken as characters over four: the plan loads no model.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from kshot.examples import Example
from kshot.prompts import prompt_of, target_of
from suite.arms import ArmInfo
from suite.budget import FULL_ROWS, NUM_FOLDS, TRIAL_ROWS
from suite.cell import Cell, read_cell
from suite.own.start import PROMPT_TOKENS
from suite.runner import RunPlan
from suite.shared_work import SharedWork

CHARACTERS_PER_TOKEN = 4  # English by SmolLM2's tokenizer
TEMPLATE_TOKENS = 10  # of the chat template, each row
OPEN_ROW_LENGTH = 1.4  # of selected rows, in those of the task: 131 tokens against 92 on MAWPS


@dataclass(frozen=True)
class Speed:
    """Tokens a second of SmolLM2-135M in bfloat16 on two cores, each with its own cells: estimates.

    Attributes:
        train: Forward and backward through one LoRA.
        read: Forward, targets and prompts of a batch.
        write: Greedy, 64 rows at once.
        load_s: Seconds to load the base model.
    """

    train: float = 350.0
    read: float = 1600.0
    write: float = 300.0
    load_s: float = 2.0


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a task's rows.

    Attributes:
        prompt: Of a test row.
        target: Of its right answer.
        choices: Targets that are scored for a row, their tokens together; 0 where answers are generated.
        num_choices: Of a row.
    """

    prompt: float
    target: float
    choices: float
    num_choices: float


def hours_by_cell(
    cells: Iterable[Cell], shared: SharedWork, plan: RunPlan, speed: Speed | None = None
) -> list[tuple[Cell, float]]:
    """Return the estimated hours of every cell that has no stored result; shared work counts at its first."""
    speed = speed or Speed()
    done: set[tuple[object, ...]] = set()
    hours = []
    for cell in cells:
        found = read_cell(cell.path(plan.results))
        if found is not None and "error" not in found:
            continue
        rows = shared.test_of(cell)
        lengths = lengths_of(cell, rows)
        seconds = _own_seconds(cell, lengths, len(rows), shared, plan, speed)
        for name, cost in _shared_seconds(cell, lengths, shared, speed):
            seconds += 0 if name in done else cost
            done.add(name)
        hours.append((cell, seconds / 3600))
    return hours


def in_words(hours: Sequence[tuple[Cell, float]]) -> str:
    """Return sums by arm and by task, and the total."""
    by_arm: dict[str, list[float]] = defaultdict(list)
    by_task: dict[str, list[float]] = defaultdict(list)
    for cell, value in hours:
        by_arm[cell.arm].append(value)
        by_task[cell.recipe.name].append(value)
    lines = [f"{'':<24}{'cells':>6}{'hours':>8}"]
    for groups in (by_arm, by_task):
        lines += [f"{name:<24}{len(values):>6}{sum(values):>8.2f}" for name, values in groups.items()] + [""]
    return "\n".join([*lines, f"{'total':<24}{len(hours):>6}{sum(value for _, value in hours):>8.2f}"])


def lengths_of(cell: Cell, rows: Sequence[Example]) -> Lengths:
    """Measure rows by their characters."""
    form, by_likelihood = cell.recipe.form, cell.recipe.form == "cloze"
    choices = [[_tokens(one) for one in row.choices or ()] if by_likelihood else [] for row in rows]
    return Lengths(
        prompt=fmean(_tokens(prompt_of(row, form)) + TEMPLATE_TOKENS for row in rows),
        target=fmean(_tokens(target_of(row, form)) for row in rows),
        choices=fmean(sum(one) for one in choices),
        num_choices=fmean(len(one) for one in choices),
    )


def _tokens(text: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN + 1


def _own_seconds(
    cell: Cell, lengths: Lengths, num_test: int, shared: SharedWork, plan: RunPlan, speed: Speed
) -> float:
    if cell.info.chosen_from:
        return 0.0
    row, prompt = lengths.prompt + lengths.target, lengths.prompt
    if cell.arm == "few_shot":
        prompt += min(PROMPT_TOKENS, len(shared.shots_of(cell)) * row)
    seconds = speed.load_s + num_test * _answer_seconds(cell, lengths, prompt, cell.info, speed)
    if not cell.info.is_tuned:
        return seconds
    shots, budget = len(shared.shots_of(cell)), cell.start.data.budget
    rows = min(budget, cell.recipe.num_rows or budget)
    length = min(row * OPEN_ROW_LENGTH, cell.recipe.max_length)
    row_seconds = length / speed.train * cell.info.passes
    epochs = shared.training.num_train_epochs
    trained = FULL_ROWS if cell.info.sees == "train" else rows
    seconds += (shots + trained) * epochs * row_seconds
    num_rates = len(plan.rates) if plan.rates_of_seed in (None, cell.seed) else 1
    if num_rates > 1 or cell.info.is_judged:
        of_trial = shots / NUM_FOLDS + min(rows, TRIAL_ROWS)
        trial = of_trial * (plan.trial_epochs or epochs) * row_seconds + speed.load_s
        seconds += num_rates * NUM_FOLDS * trial
    return seconds


def _answer_seconds(cell: Cell, lengths: Lengths, prompt: float, info: ArmInfo, speed: Speed) -> float:
    """Return seconds a test row: its answer, and the likelihood of the right one."""
    read = prompt + lengths.target
    if lengths.num_choices:
        return (read + lengths.num_choices * prompt + lengths.choices) / speed.read
    limit = cell.recipe.max_new_tokens  # an untuned model goes on to the end
    written = min(limit, 1.3 * lengths.target) if info.is_tuned else limit
    return (read + prompt) / speed.read + written / speed.write


def _shared_seconds(
    cell: Cell, lengths: Lengths, shared: SharedWork, speed: Speed
) -> list[tuple[tuple[object, ...], float]]:
    """Return what is done once for several cells: scores of the bank on shots, or on rows for the oracle."""
    is_oracle = cell.info.sees == "test"
    count = (
        min(cell.recipe.oracle_rows, len(shared.test_of(cell))) if is_oracle else len(shared.shots_of(cell))
    )
    each = _answer_seconds(cell, lengths, lengths.prompt, cell.info, speed) + lengths.target / speed.read
    key = (cell.recipe.name, is_oracle or cell.seed, cell.start.num_shots, cell.start.leak_free)
    return [(key, count * len(shared.bank_of(cell)) * each)]
