"""Scoring by two workers of Ray: the scores and the selection of scoring here, with a worker killed too."""

import pytest

from kshot.bank import Bank
from kshot.experts import ScoreStore, adapter_similarity, score_experts, select_experts

from ..engine.noting import NotingEngine, two_ray_workers
from .banks import bank_of
from .shots import SHOTS

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")

SETTINGS = {"max_new_tokens": 4, "adapters_at_once": 4}


@pytest.fixture(scope="module")
def engine():
    with two_ray_workers() as engine:
        yield engine


@pytest.fixture
def bank(lora_folder) -> Bank:
    return bank_of(*(lora_folder(f"adapter-{seed}", seed, r=1 + seed // 2) for seed in range(10)))


def selected(bank: Bank, scores) -> tuple[object, ...]:
    selection = select_experts(scores, adapter_similarity(bank), num_experts=3, num_candidates=6)
    return selection.experts, [adapter.name for adapter in selection.ranking], selection.groups[0].members


@pytest.mark.parametrize(
    "kill", [None, "the scores of adapter-3, adapter-4, adapter-5"], ids=["all live", "one killed"]
)
def test_against_scoring_here(tiny_lm, bank, engine, tmp_path, kill) -> None:
    here = score_experts(tiny_lm, bank, SHOTS, **SETTINGS)
    noting, path = NotingEngine(engine, tmp_path, kill), tmp_path / "scores.jsonl"
    there = score_experts(tiny_lm, bank, SHOTS, engine=noting, store=ScoreStore(path), **SETTINGS)
    for one, other in zip(there, here, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-6)  # as numbers of threads may differ
        assert one.reasoning_ppl == pytest.approx(other.reasoning_ppl, rel=1e-6)
        assert one.shot_answer == other.shot_answer
        assert one.shot_correct == other.shot_correct
    assert selected(bank, there) == selected(bank, here)
    assert noting.begun_again() == ({kill: 2} if kill else {})
    assert len(noting.begun()) == 3
    assert len(path.read_text().splitlines()) == len(bank) * len(SHOTS) * 2 + len(bank)
