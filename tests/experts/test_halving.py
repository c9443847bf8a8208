"""Successive halving: the plan, what survives against exact scores, and that nothing is computed twice."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot.bank import Bank
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.experts import ScoreStore, halve_experts, score_experts
from kshot.experts.halving_plan import PlannedRound, num_entrants, plan_rounds
from kshot.experts.ranking import rank_adapters
from kshot.experts.shot_losses import shot_losses
from kshot.language_model import LanguageModel

from ..tiny_bank import write_bank

NAMES = [f"m{number}" for number in range(9)]
SHOTS = [
    Example(instruction=f"say {number} please", output=word, rationale=f"it is {word}", id=str(number))
    for number, word in enumerate(["five", "two", "yes", "no", "maybe", "three", "one 1", "sum"])
]
CHOICES = [
    Example(instruction=shot.instruction, output=shot.output, choices=("yes", shot.output, "no 1"), label=1)
    for shot in SHOTS[:2] + SHOTS[4:]
]


class Recording(ScoreStore):
    """Counts how often each key is written."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self.written: Counter[str] = Counter()

    def put(self, values: Mapping[str, Any]) -> None:
        self.written.update(values.keys())
        super().put(values)


@pytest.fixture
def bank(tmp_path: Path, lora_folder) -> Bank:
    return Bank.open(write_bank(tmp_path / "bank", lora_folder, NAMES, r=2))


@pytest.mark.parametrize(
    ("adapters", "shots", "want"),
    [
        (1000, 16, [(2, 256), (4, 128), (8, 64)]),
        (150, 16, [(4, 128), (8, 64)]),
        (65, 16, [(8, 64)]),
        (64, 16, []),
        (1000, 5, [(2, 128), (3, 64)]),
        (1000, 3, [(2, 64)]),
        (1000, 2, []),
    ],
)
def test_plan(adapters: int, shots: int, want: list[tuple[int, int]]) -> None:
    assert plan_rounds(adapters, shots, 64, first_shots=2) == [PlannedRound(*one) for one in want]


def test_invariant_rounds_cost_about_the_same() -> None:
    entrants, keep = num_entrants(16, 64, first_shots=2), 64
    assert entrants == 8 * keep
    left, seen = entrants, 0
    for planned in plan_rounds(entrants, 16, keep, first_shots=2):
        assert left * planned.num_shots == keep * 16
        assert planned.num_shots > seen
        left, seen = planned.num_kept, planned.num_shots
    assert left == keep
    assert num_entrants(16, 64, first_shots=3, factor=3) == 64 * 3
    assert num_entrants(16, 64, first_shots=16) == 64


@pytest.mark.parametrize("method", ["paper", "robust"])
def test_rounds_rank_as_exact_scores_on_the_same_shots(
    tiny_lm: LanguageModel, bank: Bank, method: Any
) -> None:
    """Of choices, whose scores need no answers, so that a round is exact on its shots."""
    settings = {"scorer": "multiple_choice", "listed": False}
    halving = halve_experts(tiny_lm, bank, CHOICES, keep=2, first_shots=2, method=method, **settings)
    assert [(one.num_shots, len(one.ranking), len(one.survivors)) for one in halving.rounds] == [
        (2, 9, 4),
        (3, 4, 2),
    ]
    left = bank
    order = np.random.default_rng(0).permutation(len(CHOICES))
    for one in halving.rounds:
        shots = [CHOICES[place] for place in sorted(order[: one.num_shots])]
        scores = score_experts(tiny_lm, left, shots, **settings)
        ranking = rank_adapters(scores, shot_losses(scores) if method == "robust" else None)
        assert one.ranking == tuple(ranked.name for ranked in ranking)
        assert one.mean_nll == pytest.approx({score.name: score.mean_nll for score in scores}, rel=1e-5)
        left = left.subset(one.survivors)
    assert halving.survivors == halving.rounds[-1].survivors


@pytest.mark.parametrize("scorer", ["multiple_choice", "exact_match"])
def test_nothing_is_computed_twice(tiny_lm: LanguageModel, bank: Bank, tmp_path: Path, scorer: str) -> None:
    shots = CHOICES if scorer == "multiple_choice" else SHOTS
    settings = {"scorer": scorer, "store": Recording(tmp_path / "store")}
    halving = halve_experts(tiny_lm, bank, shots, keep=2, first_shots=2, **settings)
    assert len(halving.survivors) == 2
    scored = bank.subset(halving.survivors)
    pairs = 9 * 2 + 4 * halving.rounds[1].num_shots - 4 * 2
    if scorer == "multiple_choice":  # survivors are on all shots already
        pairs += 2 * (len(shots) - halving.rounds[-1].num_shots)
    assert len(settings["store"].written) == pairs
    scores = score_experts(tiny_lm, scored, shots, max_new_tokens=2, **settings)
    assert set(settings["store"].written.values()) == {1}
    assert [score.n for score in scores] == [len(shots)] * 2

    again = Recording(tmp_path / "store")
    assert halve_experts(tiny_lm, bank, shots, keep=2, first_shots=2, scorer=scorer, store=again) == halving
    assert not again.written


def test_small_bank_survives_without_a_run(tiny_lm: LanguageModel, bank: Bank) -> None:
    store = Recording()
    halving = halve_experts(tiny_lm, bank, SHOTS, keep=9, store=store)
    assert halving.survivors == tuple(NAMES)
    assert not halving.rounds
    assert not store.written


def test_lists_what_cannot_be_run_and_goes_on(tiny_lm: LanguageModel, bank: Bank) -> None:
    (bank["m3"].folder / "adapter_model.safetensors").write_bytes(b"")
    counted: list[int] = []
    halving = halve_experts(tiny_lm, bank, SHOTS, keep=4, first_shots=2, progress=counted.append)
    assert list(halving.failures) == ["m3"]
    assert len(halving.survivors) == 4
    assert "m3" not in halving.survivors
    assert sum(counted) == 8 * 2 + 8 * 2 == counted_pairs(halving)


def counted_pairs(halving: Any) -> int:
    """Pairs of adapters and shots, each once."""
    pairs, seen = 0, 0
    for one in halving.rounds:
        pairs += len(one.ranking) * (one.num_shots - seen)
        seen = one.num_shots
    return pairs


def test_refuses(tiny_lm: LanguageModel, bank: Bank) -> None:
    with pytest.raises(ConfigError, match="first_shots must be at most half of the 8 shots to leave 2 of 9"):
        halve_experts(tiny_lm, bank, SHOTS, keep=2, first_shots=8)
    with pytest.raises(ConfigError, match="factor must be at least 2, got 1"):
        plan_rounds(9, 8, 2, factor=1)
    with pytest.raises(ConfigError, match="first_shots must be at least 1, got 0"):
        num_entrants(9, 8, first_shots=0)
    for adapter in bank:
        (adapter.folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="at least one adapter that can be run, got 9 that cannot; m0"):
        halve_experts(tiny_lm, bank, SHOTS, keep=2, first_shots=2)
