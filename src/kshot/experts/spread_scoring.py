"""Scoring by the workers of an engine: adapters go to them with their weights, values come back.

Workers need not see the disk of the machine that the run is on. What they find out is put into the run's own
store, shard by shard, so that a run that is killed goes on from there, on any engine.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kshot.bank import Adapter
from kshot.bank.adapter import CONFIG, sha256_of
from kshot.engine import Engine
from kshot.evaluation.sandbox import allows_unsafe_code, unsafe_code
from kshot.experts.asked_shots import AskedShot
from kshot.experts.score_store import ScoreStore
from kshot.experts.sent_model import SentModel
from kshot.experts.shot_passes import ScoringSettings
from kshot.experts.shot_runner import ShotRunner
from kshot.mixture import LoraExpert


def run_groups(
    runner: ShotRunner, groups: Sequence[Sequence[Adapter]], engine: Engine | None
) -> Iterator[Sequence[Adapter]]:
    """Have each group run, and yield it when its results are in the runner's store.

    Args:
        runner: Knows shots, settings, base model and store.
        groups: Adapters that share batches.
        engine: Groups are its shards; None: the runner runs them here, in their order.

    Raises:
        KshotError: As `ShotRunner.run`, as `Engine.run`, or a worker has another base model.
    """
    if engine is None:
        for group in groups:
            runner.run(group)
            yield group
        return
    left = []
    for group in groups:
        if runner.knows(group):
            runner.progress(len(group) * len(runner.asked))
            yield group
        else:
            left.append(group)
    if not left:
        return
    make_scorer = MakeScorer(
        SentModel.of(runner.lm), tuple(runner.asked), runner.settings, allows_unsafe_code()
    )
    with closing(engine.run(make_scorer, _Shards(runner, left))) as results:
        for index, values in results:
            runner.store.put(values)
            runner.progress(len(left[index]) * len(runner.asked))
            yield left[index]


@dataclass(frozen=True, slots=True)
class SentAdapter(Adapter):
    """An adapter that has its factors with it.

    Attributes:
        expert: The factors.
    """

    expert: LoraExpert

    def load(self) -> LoraExpert:
        """Return the factors; they were checked where they were read."""
        return self.expert


@dataclass(frozen=True, slots=True)
class ScoringShard:
    """Adapters to run together, with what is known of them."""

    adapters: tuple[SentAdapter, ...]
    known: Mapping[str, Any]

    def __str__(self) -> str:
        return "the scores of " + ", ".join(adapter.name for adapter in self.adapters)


class _Shards(Sequence[ScoringShard]):
    """Reads the adapters of a group when its shard is asked for, and forgets them."""

    def __init__(self, runner: ShotRunner, groups: Sequence[Sequence[Adapter]]) -> None:
        self._runner = runner
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: Any) -> Any:
        group = self._groups[index]
        return ScoringShard(tuple(_sent(adapter) for adapter in group), self._runner.known(group))


@dataclass(frozen=True, slots=True)
class MakeScorer:
    """Makes a worker that scores adapters on shots.

    Attributes:
        base: The base model.
        asked: The shots.
        settings: What is asked.
        allow_unsafe_code: As it is where the run was started.
    """

    base: SentModel
    asked: tuple[AskedShot, ...]
    settings: ScoringSettings
    allow_unsafe_code: bool

    def __call__(self) -> "Scorer":
        """Load the base model.

        Raises:
            SourceError: It is not to be had on this machine, or is another one.
        """
        return Scorer(self)


class Scorer:
    """A worker: it keeps the base model from one shard to the next."""

    def __init__(self, made_of: MakeScorer) -> None:
        self._found = _Found()
        self._allow_unsafe_code = made_of.allow_unsafe_code
        self._runner = ShotRunner(
            made_of.base.load(), made_of.asked, made_of.settings, self._found, lambda pairs: None
        )

    def __call__(self, shard: ScoringShard) -> dict[str, Any]:
        """Return what is found out of a shard's adapters, by the keys of the store.

        Raises:
            AdapterError: An adapter does not fit.
            SandboxError: This machine cannot run what models write.
        """
        self._found.begin(shard.known)
        with unsafe_code(self._allow_unsafe_code):
            self._runner.run(shard.adapters)
        return self._found.fresh


class _Found(ScoreStore):
    """A store in memory that tells what is new in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fresh: dict[str, Any] = {}

    def begin(self, known: Mapping[str, Any]) -> None:
        """Take what is known already; nothing is new."""
        super().put(known)
        self.fresh = {}

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep values, and note that they are new."""
        super().put(values)
        self.fresh |= values


def _sent(adapter: Adapter) -> SentAdapter:
    entry = adapter.entry
    if entry.config_sha256 is None:  # an index of format 1; a worker cannot look it up
        entry = entry.model_copy(update={"config_sha256": sha256_of(adapter.folder / CONFIG)})
    return SentAdapter(adapter.folder, entry, adapter.load())
