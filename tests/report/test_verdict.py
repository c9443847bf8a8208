"""The verdict: what it says in each case, and its errors against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kshot.evaluation.statistics import mcnemar
from kshot.report.parts.evaluation import Answer, Arm, Evaluation, TestRow
from kshot.report.verdict import judge

N = 200


def _evaluation(right: dict[str, list[bool]]) -> Evaluation:
    tuned = right["tuned_mixture"]
    arms = [
        Arm(
            key=key,
            title=key,
            accuracy=sum(rows) / len(rows),
            stderr=0.03,
            n=len(rows),
            p_value=None if key == "tuned_mixture" else mcnemar(tuned, rows),
            other={},
        )
        for key, rows in right.items()
    ]
    answers = zip(*right.values(), strict=True)
    rows = [TestRow(str(i), "", "", tuple(Answer("", one) for one in row)) for i, row in enumerate(answers)]
    return Evaluation(tuple(arms), tuple(rows))


def _hits(**counts: int) -> Evaluation:
    """Each arm is right on the first rows."""
    return _evaluation({key: [row < count for row in range(N)] for key, count in counts.items()})


@pytest.mark.parametrize(
    ("base", "single", "single_tuned", "tone", "lead"),
    [
        (20, 40, 90, "good", "It worked"),
        (20, 40, 98, "partial", "model but not clearly better than a single expert after the same tuning"),
        (20, 98, 98, "partial", "clearly better than the best single expert and a single expert after"),
        (20, 40, 130, "partial", "but clearly worse than a single expert after the same tuning"),
        (20, 140, 98, "partial", "but clearly worse than the best single expert"),
        (98, 40, 40, "bad", "No gain is shown"),
        (100, 40, 40, "bad", "No gain is shown"),
        (140, 40, 40, "bad", "It did not work"),
    ],
)  # fmt: skip
def test_lead(base: int, single: int, single_tuned: int, tone: str, lead: str) -> None:
    verdict = judge(_hits(base=base, best_single=single, best_single_tuned=single_tuned, tuned_mixture=100))
    assert verdict.tone == tone
    assert lead in verdict.lead


def _plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_golden_sentences() -> None:
    verdict = judge(_hits(base=140, best_single=100, uniform_mixture=97, tuned_mixture=100))
    assert _plain(verdict.headline) == (
        "the tuned mixture answers 50.0 ± 3.0 % of 200 test rows right, the base model 70.0 ± 3.0 %: "
        "20.0 ± 2.8 points fewer, p < 0.001."
    )
    sentences = {key: _plain(one.sentence) for key, one in verdict.comparisons.items()}
    assert "no clear difference, 0.0 ± 0.0 points apart (p = 1;" in sentences["best_single"]
    assert sentences["uniform_mixture"] == (
        "Against the untuned mixture with equal weights (48.5 ± 3.0 %): no clear difference, 1.5 ± 0.9 "
        "points more (p = 0.25; it alone is right on 3 rows, the other alone on 0)."
    )


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_against_numpy(pairs: list[tuple[bool, bool]]) -> None:
    tuned, base = [one for one, _ in pairs], [other for _, other in pairs]
    comparison = judge(_evaluation({"base": base, "tuned_mixture": tuned})).comparisons["base"]
    differences = np.array(tuned, dtype=float) - np.array(base, dtype=float)
    assert comparison.difference == pytest.approx(differences.mean())
    assert comparison.stderr == pytest.approx(differences.std(ddof=1) / np.sqrt(len(pairs)), abs=1e-12)
    assert comparison.wins - comparison.losses == differences.sum()
