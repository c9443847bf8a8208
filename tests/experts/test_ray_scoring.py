"""Scoring by two workers of Ray: the scores and the selection of scoring here, with a worker killed too."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from kshot.bank import Bank
from kshot.bank.adapter import Adapter, describe
from kshot.engine import RayEngine
from kshot.examples import Example
from kshot.experts import ScoreStore, adapter_similarity, score_experts, select_experts

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")

SHOTS = [
    Example("add one and two", "three", answer="three", rationale="one and two is three", id="a"),
    Example("say cat", "the cat", id="b"),
    Example("count", "one two three four five", rationale="start at one", id="c"),
]
SETTINGS = {"max_new_tokens": 4, "adapters_at_once": 4}


@pytest.fixture(scope="module")
def engine():
    ray = pytest.importorskip("ray")
    module = sys.modules[__name__]
    with RayEngine(num_workers=2) as engine:
        ray.cloudpickle.register_pickle_by_value(module)
        yield engine
        ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def bank(lora_folder) -> Bank:
    folders = [lora_folder(f"adapter-{seed}", seed, r=1 + seed // 2) for seed in range(10)]
    return Bank([Adapter(folder, describe(folder, folder.name)) for folder in folders])


class Noting:
    """Makes the workers that it is given, and lets them note what they do; one is killed at it."""

    def __init__(self, make_worker, folder: Path, kill: bool) -> None:
        self.make_worker = make_worker
        self.folder = folder
        self.kill = kill

    def __call__(self):
        worker = self.make_worker()

        def work(shard):
            with (self.folder / "begun").open("a") as file:
                print(*(adapter.name for adapter in shard.adapters), file=file)
            flag = self.folder / "killed"
            if self.kill and "adapter-5" in str(shard) and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return worker(shard)

        return work


class NotingEngine:
    """Runs shards on Ray, and counts how often each was begun."""

    def __init__(self, engine, folder: Path, *, kill: bool = False) -> None:
        self.engine = engine
        self.folder = folder
        self.kill = kill

    def run(self, make_worker, shards):
        return self.engine.run(Noting(make_worker, self.folder, self.kill), shards)

    def begun(self) -> Counter[str]:
        return Counter((self.folder / "begun").read_text().splitlines())


def selected(bank: Bank, scores) -> tuple[object, ...]:
    selection = select_experts(scores, adapter_similarity(bank), num_experts=3, num_candidates=6)
    return selection.experts, [adapter.name for adapter in selection.ranking], selection.groups[0].members


@pytest.mark.parametrize("kill", [False, True], ids=["all live", "one killed"])
def test_against_scoring_here(tiny_lm, bank, engine, tmp_path, kill) -> None:
    here = score_experts(tiny_lm, bank, SHOTS, **SETTINGS)
    noting, path = NotingEngine(engine, tmp_path, kill=kill), tmp_path / "scores.jsonl"
    there = score_experts(tiny_lm, bank, SHOTS, engine=noting, store=ScoreStore(path), **SETTINGS)
    for one, other in zip(there, here, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-6)  # as numbers of threads may differ
        assert one.reasoning_ppl == pytest.approx(other.reasoning_ppl, rel=1e-6)
        assert one.shot_answer == other.shot_answer
        assert one.shot_correct == other.shot_correct
    assert selected(bank, there) == selected(bank, here)
    twice = {names: times for names, times in noting.begun().items() if times > 1}
    lost = {"adapter-3 adapter-4 adapter-5": 2} if kill else {}
    assert twice == lost
    assert len(noting.begun()) == 3
    assert len(path.read_text().splitlines()) == len(bank) * len(SHOTS) * 2 + len(bank)
