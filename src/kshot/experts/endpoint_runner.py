"""Runs adapters that a server holds on shots, several requests at once, each result kept as it comes."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kshot.bank import Adapter
from kshot.endpoint import in_threads
from kshot.errors import AdapterError
from kshot.evaluation.judging import judge_of
from kshot.experts.asked_shots import AskedShot, by_likelihood
from kshot.experts.endpoint_base import ServedBase
from kshot.experts.endpoint_client import CompletionsClient
from kshot.experts.expert_score import ShotResult
from kshot.experts.score_store import ScoreStore, key_of
from kshot.experts.shot_result import shot_result
from kshot.progress import Advance

VERSION = 1  # of what is stored: raise it when the same inputs give other values

Kind = Literal["nll", "answer"]


@dataclass(frozen=True, slots=True)
class _Item:
    """One piece of work: all likelihoods of a shot, or its answer."""

    adapter: Adapter
    kind: Kind
    shot: int


class EndpointRunner:
    """Knows shots, server and what is asked; `run` asks, `results` looks up.

    Args:
        client: Of the server.
        base: Whose tokens are sent.
        asked: The shots.
        served: What the server calls each adapter.
        scorer: As in `kshot.evaluate`.
        listed: As in `kshot.evaluate`.
        max_new_tokens: Longest generated answer.
        store: Where results go, and where those of an earlier run are.
    """

    def __init__(
        self,
        client: CompletionsClient,
        base: ServedBase,
        asked: Sequence[AskedShot],
        served: dict[str, str],
        *,
        scorer: str,
        listed: bool,
        max_new_tokens: int,
        store: ScoreStore,
    ) -> None:
        self.client = client
        self.asked = asked
        self.served = served
        self.store = store
        self._judge = judge_of(scorer)
        self._max_new_tokens = max_new_tokens
        self._kinds: tuple[Kind, ...] = (
            ("nll",) if by_likelihood(scorer, listed=listed) else ("nll", "answer")
        )
        answering = [scorer, listed, max_new_tokens, base.end_ids]
        self._keys: dict[Kind, list[str]] = {
            "nll": [key_of([[one.input_ids, one.prompt_length] for one in shot.targets]) for shot in asked],
            "answer": [key_of(*answering, shot.reasoning.input_ids, shot.shot.to_row()) for shot in asked],
        }

    def missing(self, adapter: Adapter) -> list[_Item]:
        """Return what is not known of an adapter."""
        items = [_Item(adapter, kind, shot) for kind in self._kinds for shot in range(len(self.asked))]
        return [item for item in items if self._key(item) not in self.store]

    def run(
        self, adapters: Sequence[Adapter], concurrency: int, progress: Advance
    ) -> Iterator[tuple[Adapter, str | None]]:
        """Ask what is not known of some adapters; of one that fails nothing more is asked.

        Args:
            adapters: Served ones, of each of which something is missing.
            concurrency: Requests under way at once.
            progress: Called with the number of (adapter, shot) pairs just finished.

        Yields:
            Each adapter once: with a reason as soon as it fails, with None as soon as all of it is known.

        Raises:
            SourceError: The server cannot be reached, refuses, or answers with nonsense. What came before is
                in the store.
        """
        items = [item for adapter in adapters for item in self.missing(adapter)]
        left_of_pair = Counter((item.adapter.name, item.shot) for item in items)
        left = Counter(item.adapter.name for item in items)
        progress(len(adapters) * len(self.asked) - len(left_of_pair))
        failed: set[str] = set()

        def work(index: int) -> dict[str, Any] | AdapterError | None:
            try:
                return None if items[index].adapter.name in failed else self._ask(items[index])
            except AdapterError as error:
                return error

        for index, found in in_threads(work, len(items), concurrency):
            item, name = items[index], items[index].adapter.name
            if isinstance(found, dict):
                self.store.put({self._key(item): found})
            elif found is not None and name not in failed:
                failed.add(name)
                yield item.adapter, f"{self.asked[item.shot].shot.id or 'a shot'}: {found}"
            left_of_pair[name, item.shot] -= 1
            left[name] -= 1
            if not left_of_pair[name, item.shot]:
                progress(1)
            if not left[name] and name not in failed:
                yield item.adapter, None

    def results(self, adapter: Adapter) -> list[ShotResult]:
        """Return what an adapter does on each shot, once it was run."""
        return [self._result(adapter, shot) for shot in range(len(self.asked))]

    def nll(self, adapter: Adapter, shot: int) -> list[float]:
        """Return the summed NLL of each target of a shot, in nats, once it is known."""
        found: list[float] = self.store[self._key(_Item(adapter, "nll", shot))]["nll"]
        return found

    def _result(self, adapter: Adapter, shot: int) -> ShotResult:
        found = {kind: self.store[self._key(_Item(adapter, kind, shot))] for kind in self._kinds}
        return shot_result(self.asked[shot], found["nll"], found.get("answer"))

    def _key(self, item: _Item) -> str:
        """Return where a result is kept: apart from those of a local model, and of any other server."""
        served = self.served[item.adapter.name]
        what = self._keys[item.kind][item.shot]
        return key_of(VERSION, "endpoint", item.kind, self.client.url, served, item.adapter.digest, what)

    def _ask(self, item: _Item) -> dict[str, Any]:
        asked, model = self.asked[item.shot], self.served[item.adapter.name]
        started = time.perf_counter()
        found: dict[str, Any]
        if item.kind == "nll":
            nll = [-sum(self.client.target_logprobs(model, target)) for target in asked.targets]
            found = {"nll": nll}
        else:
            prompt_ids = asked.reasoning.input_ids[: asked.prompt_length]
            answer = self.client.answer(model, prompt_ids, self._max_new_tokens)
            found = {"answer": answer, "correct": self._judge(answer, asked.shot)}
        return found | {"seconds": time.perf_counter() - started}
