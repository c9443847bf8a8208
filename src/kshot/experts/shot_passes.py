"""Forward passes over (adapter, shot) pairs: likelihoods of targets, and greedy answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.evaluation.judging import judge_all
from kshot.experts.asked_shots import AskedShot
from kshot.experts.batch_plan import Pair, answer_bytes, likelihood_bytes, product_batches
from kshot.experts.prompt_cache import (
    PromptCache,
    cache_prompts,
    cached_nll,
    join_caches,
    keeps_all_tokens,
)
from kshot.experts.row_experts import RowExperts
from kshot.experts.shared_prompts import separate_nll, share_prompt, shared_nll, shares_prompts
from kshot.language_model import LanguageModel

PairNll = list[np.ndarray]  # of a pair: an array of token NLL for each target, in nats


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """What is asked of every adapter; see `score_experts`."""

    scorer: str
    listed: bool
    max_new_tokens: int
    memory: int  # bytes: half for activations, half for the keys and values of a batch


class ShotPasses:
    """Computes; what is known already and what is kept is the business of `ShotRunner`.

    Attributes:
        caches_prompts: Whether a prompt is computed once for its targets and its answer.
    """

    def __init__(self, lm: LanguageModel, asked: Sequence[AskedShot], settings: ScoringSettings) -> None:
        self._lm, self._asked, self._settings = lm, asked, settings
        self._shared = shares_prompts(lm.model, max(shot.longest for shot in asked))
        self.caches_prompts = self._shared and keeps_all_tokens(lm.model)
        self._nll_sizes = [likelihood_bytes(lm.model, shot, shared=self._shared) for shot in asked]
        self._answer_sizes = [answer_bytes(lm.model, shot, settings.max_new_tokens) for shot in asked]
        self._memory = settings.memory // 2

    def nll_batches(self, num_adapters: int) -> Iterator[list[Pair]]:
        """Yield batches for `nll`; they follow from shots, settings and the number of adapters alone."""
        return product_batches(self._nll_sizes, num_adapters, self._memory)

    def answer_batches(self, num_adapters: int) -> Iterator[list[Pair]]:
        """Yield batches for `answers`; likewise."""
        return product_batches(self._answer_sizes, num_adapters, self._memory)

    def nll_parts(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """Cut a batch of `answer_batches` into batches for `nll_after`, each as places in it."""
        shots = [shot for adapter, shot in pairs if adapter == pairs[0][0]]
        sizes = [self._nll_sizes[shot] for shot in shots]
        for part in product_batches(sizes, len(pairs) // len(shots), self._memory):
            yield [adapter * len(shots) + shot for adapter, shot in part]

    def nll(self, rows: RowExperts, pairs: Sequence[Pair]) -> list[PairNll]:
        """Return the token NLL of each pair's targets."""
        groups = [self._asked[shot].targets for _, shot in pairs]
        owners = [adapter for adapter, _ in pairs]
        if self._shared:
            rows.use(owners)
            return shared_nll(self._lm.model, [share_prompt(group) for group in groups], self._lm.pad_id)
        rows.use([owner for owner, group in zip(owners, groups, strict=True) for _ in group])
        return separate_nll(self._lm.model, groups, self._lm.pad_id)

    def prompts(self, rows: RowExperts, pairs: Sequence[Pair], width: int) -> PromptCache:
        """Run the prompts of some pairs, for `nll_after` and `answers`."""
        rows.use([adapter for adapter, _ in pairs])
        return cache_prompts(self._lm.model, self._prompt_ids(pairs), self._lm.pad_id, width)

    def nll_after(self, rows: RowExperts, pairs: Sequence[Pair], prompts: PromptCache) -> list[PairNll]:
        """Return what `nll` does, after prompts that have been run."""
        rows.use([adapter for adapter, _ in pairs])
        shared = [share_prompt(self._asked[shot].targets) for _, shot in pairs]
        return cached_nll(self._lm.model, prompts, shared, self._lm.pad_id)

    def width(self, pairs: Sequence[Pair]) -> int:
        """Return the cached tokens of the longest prompt."""
        return max(self._asked[shot].prompt_length for _, shot in pairs) - 1

    def answers(
        self, rows: RowExperts, pairs: Sequence[Pair], prompts: PromptCache | None = None
    ) -> list[tuple[str, bool]]:
        """Return each pair's greedy answer, and whether it is right.

        Args:
            rows: Told which adapters are at work.
            pairs: Rows decoded at once.
            prompts: Of these pairs, where they have been run.
        """
        texts = self._lm.answer_batch(
            self._prompt_ids(pairs),
            max_new_tokens=self._settings.max_new_tokens,
            on_rows=lambda places: rows.use([pairs[place][0] for place in places]),
            cache=None if prompts is None else prompts.to_cache(self._lm.model),
        )
        verdicts = judge_all(self._settings.scorer, texts, [self._asked[shot].shot for _, shot in pairs])
        return [(text, verdict.correct) for text, verdict in zip(texts, verdicts, strict=True)]

    def _prompt_ids(self, pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
        asked = [self._asked[shot] for _, shot in pairs]
        return [shot.reasoning.input_ids[: shot.prompt_length] for shot in asked]


def only_rows(prompts: PromptCache, places: Sequence[int], num_rows: int) -> PromptCache:
    """Return some rows of a cache of so many; the cache itself where they are all."""
    return prompts if list(places) == list(range(num_rows)) else join_caches([prompts], places)
