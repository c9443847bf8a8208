"""Runs adapters on shots in shared batches, and keeps what comes out as soon as a batch is done."""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kshot.bank import Adapter
from kshot.errors import AdapterError
from kshot.experts.asked_shots import AskedShot, by_likelihood
from kshot.experts.batch_plan import Pair
from kshot.experts.expert_score import ShotResult
from kshot.experts.prompt_cache import PromptCache, join_caches
from kshot.experts.row_experts import RowExperts, row_experts
from kshot.experts.score_store import ScoreStore, key_of
from kshot.experts.shot_passes import ScoringSettings, ShotPasses, only_rows
from kshot.experts.shot_result import shot_result
from kshot.language_model import LanguageModel
from kshot.progress import Advance

VERSION = 1  # of what is stored: raise it when the same inputs give other values
_UNANSWERED = {"answer": "", "correct": False, "seconds": 0.0}
_PROBED = 64  # numbers of each weight that tell models apart


class ShotRunner:
    """Knows shots, settings and the base model; `run` computes, `results` looks up.

    Args:
        lm: A base model without adapters.
        asked: The shots.
        settings: What is asked.
        store: Where results go, and where those of an earlier run are.
        progress: Called with the number of (adapter, shot) pairs just finished.
    """

    def __init__(
        self,
        lm: LanguageModel,
        asked: Sequence[AskedShot],
        settings: ScoringSettings,
        store: ScoreStore,
        progress: Advance,
    ) -> None:
        self.lm = lm
        self.asked = asked
        self.settings = settings
        self.store = store
        self.progress = progress
        self.by_likelihood = by_likelihood(settings.scorer, listed=settings.listed)
        self._digests: dict[str, str] = {}
        self._passes = ShotPasses(lm, asked, settings)
        base = model_key(lm)
        self._nll_keys = [
            key_of(
                VERSION, "nll", base, [[target.input_ids, target.prompt_length] for target in shot.targets]
            )
            for shot in asked
        ]
        answering = [VERSION, "answer", base, settings.scorer, settings.listed, settings.max_new_tokens]
        self._answer_keys = [
            key_of(*answering, shot.reasoning.input_ids, shot.shot.to_row()) for shot in asked
        ]

    @torch.inference_mode()
    def run(self, adapters: Sequence[Adapter], *, answers: bool = True) -> None:
        """Compute what is not known yet of some adapters, together.

        Batches follow from adapters, shots and settings alone: one that was interrupted is made up again of
        the same rows, so that results are the same to the last bit. So a batch of which one pair is unknown
        is computed as a whole; what other batches found out of all its pairs is taken.

        Args:
            adapters: To run.
            answers: Whether to generate, where the task does; else likelihoods alone are computed.

        Raises:
            AdapterError: An adapter cannot be read or does not fit.
        """
        with row_experts(self.lm.model, [adapter.load() for adapter in adapters]) as rows:
            generates = answers and not self.by_likelihood
            if generates and self._passes.caches_prompts:
                for pairs in self._passes.answer_batches(len(adapters)):
                    self._likelihoods_and_answers(rows, adapters, pairs)
                return
            for pairs in self._passes.nll_batches(len(adapters)):
                self._likelihoods(rows, adapters, pairs)
            if generates:
                self._answers(rows, adapters)

    def results(self, adapter: Adapter) -> list[ShotResult]:
        """Return what an adapter does on each shot, once it was run.

        Raises:
            AdapterError: A likelihood is not a number.
        """
        return [self._result(adapter, shot) for shot in range(len(self.asked))]

    def likelihoods(self, adapter: Adapter) -> list[ShotResult]:
        """Return what is known without generating: where the task generates, answers are empty and wrong.

        Raises:
            AdapterError: A likelihood is not a number.
        """
        return [self._result(adapter, shot, answers=False) for shot in range(len(self.asked))]

    def knows(self, adapters: Sequence[Adapter]) -> bool:
        """Whether there is nothing left to `run`."""
        pairs = [(adapter, shot) for adapter in range(len(adapters)) for shot in range(len(self.asked))]
        nll_keys, answer_keys = self._nll_keys_of(adapters, pairs), self._answer_keys_of(adapters, pairs)
        if not self._known(nll_keys):
            return False
        return self.by_likelihood or self._known(self._of_sound(nll_keys, answer_keys))

    def known(self, adapters: Sequence[Adapter]) -> dict[str, Any]:
        """Return what the store holds of some adapters, by its keys."""
        pairs = [(adapter, shot) for adapter in range(len(adapters)) for shot in range(len(self.asked))]
        keys = [*self._nll_keys_of(adapters, pairs), *self._answer_keys_of(adapters, pairs)]
        return {key: self.store[key] for key in keys if key in self.store}

    def whole_key(self, adapter: Adapter) -> str:
        """Return the key under which it is noted that all of an adapter is known."""
        return key_of("whole", self._digest(adapter), self._nll_keys, self._answer_keys)

    def _digest(self, adapter: Adapter) -> str:
        if adapter.name not in self._digests:  # it may have to be read from the folder
            self._digests[adapter.name] = adapter.digest
        return self._digests[adapter.name]

    def _nll_key(self, adapter: Adapter, shot: int) -> str:
        return key_of(self._nll_keys[shot], self._digest(adapter))

    def _answer_key(self, adapter: Adapter, shot: int) -> str:
        return key_of(self._answer_keys[shot], self._digest(adapter))

    def _likelihoods(self, rows: RowExperts, adapters: Sequence[Adapter], pairs: Sequence[Pair]) -> None:
        if not self._known(nll_keys := self._nll_keys_of(adapters, pairs)):
            started = time.perf_counter()
            self._keep_nll(nll_keys, self._passes.nll(rows, pairs), started)
        if self.by_likelihood:
            self.progress(len(pairs))

    def _answers(self, rows: RowExperts, adapters: Sequence[Adapter]) -> None:
        """Answer where no prompt is cached."""
        sound = [index for index, adapter in enumerate(adapters) if self._first_fault(adapter) is None]
        self.progress((len(adapters) - len(sound)) * len(self.asked))
        for places in self._passes.answer_batches(len(sound)) if sound else ():
            pairs = [(sound[place], shot) for place, shot in places]
            if not self._known(keys := self._answer_keys_of(adapters, pairs)):
                started = time.perf_counter()
                self._keep_answers(keys, self._passes.answers(rows, pairs), started)
            self.progress(len(pairs))

    def _likelihoods_and_answers(
        self, rows: RowExperts, adapters: Sequence[Adapter], pairs: Sequence[Pair]
    ) -> None:
        """Run the prompts of a batch once; targets in parts, answers of all that is sound together."""
        nll_keys, answer_keys = self._nll_keys_of(adapters, pairs), self._answer_keys_of(adapters, pairs)
        if not self._known(nll_keys) or not self._known(self._of_sound(nll_keys, answer_keys)):
            prompts = self._run_prompts(rows, pairs, nll_keys)
            sound = [place for place, key in enumerate(nll_keys) if self._is_sound(key)]
            if sound:
                started = time.perf_counter()
                answers = self._passes.answers(
                    rows, [pairs[place] for place in sound], only_rows(prompts, sound, len(pairs))
                )
                self._keep_answers([answer_keys[place] for place in sound], answers, started)
        self.progress(len(pairs))

    def _run_prompts(self, rows: RowExperts, pairs: Sequence[Pair], nll_keys: Sequence[str]) -> PromptCache:
        """Run prompts, and targets where they are not known; return the cache of all."""
        width = self._passes.width(pairs)
        parts, order = [], []
        for places in self._passes.nll_parts(pairs):
            started = time.perf_counter()
            part, keys = [pairs[place] for place in places], [nll_keys[place] for place in places]
            prompts = self._passes.prompts(rows, part, width)
            if not self._known(keys):
                self._keep_nll(keys, self._passes.nll_after(rows, part, prompts), started)
            parts.append(prompts)
            order += places
        return join_caches(parts, [order.index(place) for place in range(len(pairs))])

    def _nll_keys_of(self, adapters: Sequence[Adapter], pairs: Sequence[Pair]) -> list[str]:
        return [self._nll_key(adapters[adapter], shot) for adapter, shot in pairs]

    def _answer_keys_of(self, adapters: Sequence[Adapter], pairs: Sequence[Pair]) -> list[str]:
        return [self._answer_key(adapters[adapter], shot) for adapter, shot in pairs]

    def _known(self, keys: Sequence[str]) -> bool:
        return all(key in self.store for key in keys)

    def _is_sound(self, nll_key: str) -> bool:
        return None not in self.store[nll_key]["nll"]

    def _of_sound(self, nll_keys: Sequence[str], keys: Sequence[str]) -> list[str]:
        return [key for nll_key, key in zip(nll_keys, keys, strict=True) if self._is_sound(nll_key)]

    def _keep_nll(self, keys: Sequence[str], nll: Sequence[Sequence[np.ndarray]], started: float) -> None:
        seconds = (time.perf_counter() - started) / len(keys)
        found = zip(keys, [{"nll": _sums(group), "seconds": seconds} for group in nll], strict=True)
        # What an earlier round decided by stays to the last bit.
        self.store.put({key: value for key, value in found if key not in self.store})

    def _keep_answers(self, keys: Sequence[str], answers: Sequence[tuple[str, bool]], started: float) -> None:
        seconds = (time.perf_counter() - started) / len(keys)
        found = [{"answer": text, "correct": right, "seconds": seconds} for text, right in answers]
        self.store.put(dict(zip(keys, found, strict=True)))

    def _first_fault(self, adapter: Adapter) -> AskedShot | None:
        """Return the first shot whose likelihood is not a number."""
        for index, shot in enumerate(self.asked):
            if not self._is_sound(self._nll_key(adapter, index)):
                return shot
        return None

    def _result(self, adapter: Adapter, index: int, *, answers: bool = True) -> ShotResult:
        fault = self._first_fault(adapter)
        if fault is not None:
            dtype = str(next(self.lm.model.parameters()).dtype).removeprefix("torch.")
            raise AdapterError(
                f"expected a finite likelihood of every shot, got NaN or inf on {fault.shot.id or 'a shot'}: "
                f"its weights overflow in {dtype}; train it again or leave it out"
            )
        given = None
        if not self.by_likelihood:
            given = self.store[self._answer_key(adapter, index)] if answers else _UNANSWERED
        return shot_result(self.asked[index], self.store[self._nll_key(adapter, index)], given)


def model_key(lm: LanguageModel) -> str:
    """Return a hash that tells base models apart: settings, and the first numbers of every weight."""
    weights = [
        [name, list(weight.shape), str(weight.dtype), weight.detach().flatten()[:_PROBED].double().tolist()]
        for name, weight in lm.model.named_parameters()
    ]
    settings = lm.model.config.to_dict()  # type: ignore[union-attr, operator]
    settings.pop("_name_or_path", None)  # a folder, which is another on another machine
    return key_of(settings, weights)


def _sums(nll: Sequence[np.ndarray]) -> list[float | None]:
    sums = [float(values.sum()) for values in nll]
    return [value if math.isfinite(value) else None for value in sums]
