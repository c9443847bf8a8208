"""Scoring by workers: against scoring here, with all that travels pickled as it is on the way to a worker."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kshot.bank import Bank
from kshot.bank.adapter import WEIGHTS, Adapter, sha256_of
from kshot.errors import AdapterError, SourceError
from kshot.evaluation.sandbox import allows_unsafe_code, unsafe_code
from kshot.experts import ExpertScore, ScoreStore, score_experts
from kshot.language_model import LanguageModel

from .banks import bank_of
from .shots import QUESTIONS, SHOTS

AT_ONCE = {"adapters_at_once": 4}
TASKS = {
    "generated": (SHOTS, {"max_new_tokens": 4}),
    "likelihood": (QUESTIONS, {"scorer": "multiple_choice"}),
    "listed": (QUESTIONS, {"scorer": "multiple_choice", "listed": True, "max_new_tokens": 3}),
}


class Elsewhere:
    """An engine whose worker gets everything pickled; shards are done last first."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.factory = b""
        self.shards: list[bytes] = []
        self.results: list[dict] = []

    def run(self, make_worker, shards):
        self.factory = pickle.dumps(make_worker)
        worker = pickle.loads(self.factory)()
        for index in reversed(range(len(shards))):
            if len(self.shards) == self.stop_after:
                raise KeyboardInterrupt
            self.shards.append(pickle.dumps(shards[index]))
            self.results.append(worker(pickle.loads(self.shards[-1])))
            yield index, self.results[-1]

    def names(self) -> list[list[str]]:
        return [[adapter.name for adapter in pickle.loads(shard).adapters] for shard in self.shards]


@pytest.fixture
def bank(lora_folder) -> Bank:
    return bank_of(*(lora_folder(f"adapter-{seed}", seed, r=2 + seed % 2) for seed in range(6)))


def plain(scores) -> list[dict[str, object]]:
    fields = [field for field in ExpertScore.__dataclass_fields__ if field != "seconds"]
    return [{field: getattr(score, field) for field in fields} for score in scores]


@pytest.mark.parametrize("task", TASKS)
def test_against_scoring_here_to_the_last_bit(tiny_lm, bank, task) -> None:
    shots, settings = TASKS[task]
    settings = settings | AT_ONCE
    here = score_experts(tiny_lm, bank, shots, **settings)
    done, told = [], []
    there = score_experts(
        tiny_lm, bank, shots, engine=Elsewhere(), progress=done.append, on_score=told.append, **settings
    )
    assert plain(there) == plain(here)
    assert sum(done) == len(bank) * len(shots)
    assert sorted(score.name for score in told) == bank.names


def test_shards_are_small_and_of_similar_rank(tiny_lm, bank) -> None:
    engine = Elsewhere()
    score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice", engine=engine, **AT_ONCE)
    assert engine.names() == [
        ["adapter-1", "adapter-3", "adapter-5"],
        ["adapter-0", "adapter-2", "adapter-4"],
    ]
    assert str(pickle.loads(engine.shards[0])) == "the scores of adapter-1, adapter-3, adapter-5"


def test_adapters_travel_with_their_weights_and_need_no_disk(tiny_lm, bank) -> None:
    engine = Elsewhere()
    entry = bank["adapter-1"].entry.model_copy(update={"config_sha256": None})  # an index of format 1
    old = Adapter(bank["adapter-1"].folder, entry)
    expected, digest = old.load(), old.digest
    score_experts(tiny_lm, Bank([old]), SHOTS, max_new_tokens=1, engine=engine)
    shutil.rmtree(old.folder)
    (sent,) = pickle.loads(engine.shards[0]).adapters
    assert sent.digest == digest
    for module, factors in sent.load().factors.items():
        assert torch.equal(factors.A_rI, expected.factors[module].A_rI)
        assert torch.equal(factors.B_Or, expected.factors[module].B_Or)
        assert factors.scaling == expected.factors[module].scaling


def test_a_loaded_base_travels_by_its_reference_and_another_as_it_is(tiny_lm, bank) -> None:
    by_reference, as_it_is = Elsewhere(), Elsewhere()
    bank = bank.subset(["adapter-0"])
    loaded = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=2, engine=by_reference)
    with torch.no_grad():
        next(tiny_lm.model.parameters()).mul_(1.5)
    made = LanguageModel(tiny_lm.model, tiny_lm.tokenizer)
    scores = score_experts(made, bank, SHOTS, max_new_tokens=2, engine=as_it_is)
    assert plain(scores) == plain(score_experts(made, bank, SHOTS, max_new_tokens=2))
    assert plain(scores) != plain(loaded)
    weights = sum(weight.nbytes for weight in tiny_lm.model.parameters())
    assert len(by_reference.factory) < weights < len(as_it_is.factory)


def test_a_base_that_is_another_one_for_the_worker_is_refused(tiny_lm, bank) -> None:
    with torch.no_grad():
        next(tiny_lm.model.parameters()).mul_(1.5)
    with pytest.raises(SourceError, match=r"expected the base model .*, got another one on .*same version"):
        score_experts(tiny_lm, bank, SHOTS, engine=Elsewhere())


def test_a_base_that_the_worker_cannot_load_is_refused_with_its_reason(tiny_lm, bank) -> None:
    tiny_lm.loaded_as["reference"] = "/no/such/folder"
    with pytest.raises(SourceError, match=r"a worker on .* cannot load the base model: .*no such folder"):
        score_experts(tiny_lm, bank, SHOTS, engine=Elsewhere())


def test_leave_to_run_code_unsafely_travels_and_ends_with_the_shard(tiny_lm, bank) -> None:
    engine, bank = Elsewhere(), bank.subset(["adapter-0"])
    with unsafe_code(True):
        score_experts(tiny_lm, bank, SHOTS, max_new_tokens=1, engine=engine)
    seen = []
    scorer = pickle.loads(engine.factory)()
    scorer._runner.run = lambda adapters: seen.append(allows_unsafe_code())
    scorer(pickle.loads(engine.shards[0]))
    assert seen == [True]
    assert not allows_unsafe_code()


def test_failures_are_those_of_scoring_here(tiny_lm, bank) -> None:
    torn, huge = bank["adapter-1"], bank["adapter-2"]
    (torn.folder / WEIGHTS).write_bytes(b"torn")
    weights = load_file(huge.folder / WEIGHTS)
    save_file({key: value * 1e30 for key, value in weights.items()}, huge.folder / WEIGHTS)
    entry = huge.entry.model_copy(update={"sha256": sha256_of(huge.folder / WEIGHTS)})
    bank = Bank([*bank.subset(["adapter-0", "adapter-1", "adapter-3"]), Adapter(huge.folder, entry)])
    settings = {"max_new_tokens": 2} | AT_ONCE
    here = score_experts(tiny_lm, bank, SHOTS, **settings)
    there = score_experts(tiny_lm, bank, SHOTS, engine=Elsewhere(), **settings)
    assert set(there.failures) == {"adapter-1", "adapter-2"}
    assert there.failures == here.failures
    assert plain(there) == plain(here)
    with pytest.raises(AdapterError, match="NaN or inf"):
        score_experts(tiny_lm, Bank([Adapter(huge.folder, entry)]), SHOTS, engine=Elsewhere(), **settings)


def test_stopped_after_a_shard_the_rest_alone_is_sent(tiny_lm, bank, tmp_path: Path) -> None:
    settings = {"scorer": "multiple_choice"} | AT_ONCE
    expected = score_experts(tiny_lm, bank, QUESTIONS, engine=Elsewhere(), **settings)
    path = tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_experts(
            tiny_lm, bank, QUESTIONS, engine=Elsewhere(stop_after=1), store=ScoreStore(path), **settings
        )
    resumed, done = Elsewhere(), []
    scores = score_experts(
        tiny_lm, bank, QUESTIONS, engine=resumed, store=ScoreStore(path), progress=done.append, **settings
    )
    assert resumed.names() == [["adapter-0", "adapter-2", "adapter-4"]]
    assert sum(done) == len(bank) * len(QUESTIONS)
    assert plain(scores) == plain(expected)
    again = Elsewhere()
    score_experts(tiny_lm, bank, QUESTIONS, engine=again, store=ScoreStore(path), **settings)
    assert again.factory == b""


def test_what_is_known_of_an_adapter_travels_and_is_not_computed_again(tiny_lm, bank) -> None:
    store, first, longer = ScoreStore(), Elsewhere(), Elsewhere()
    score_experts(tiny_lm, bank, SHOTS, max_new_tokens=2, store=store, engine=first)
    score_experts(tiny_lm, bank, SHOTS, max_new_tokens=3, store=store, engine=longer)
    assert {field for result in first.results for value in result.values() for field in value} == {
        "nll",
        "answer",
        "correct",
        "seconds",
    }
    assert all("answer" in value for result in longer.results for value in result.values())
    assert sum(map(len, longer.results)) == len(bank) * len(SHOTS)
