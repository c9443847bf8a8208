"""Runs adapters on shots in shared batches, and keeps what comes out as soon as a batch is done."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kshot.bank import Adapter
from kshot.errors import AdapterError
from kshot.evaluation import evaluate
from kshot.evaluation.scorers import predict_choice
from kshot.experts.asked_shots import AskedShot, by_likelihood
from kshot.experts.batch_plan import Pair, answer_bytes, likelihood_bytes, product_batches
from kshot.experts.expert_score import ShotResult
from kshot.experts.row_experts import RowExperts, row_experts
from kshot.experts.score_store import ScoreStore, key_of
from kshot.experts.shared_prompts import separate_nll, share_prompt, shared_nll, shares_prompts
from kshot.language_model import LanguageModel
from kshot.progress import Advance

VERSION = 1  # of what is stored: raise it when the same inputs give other values
_PROBED = 64  # numbers of each weight that tell models apart


@dataclass(frozen=True, slots=True)
class ScoringSettings:
    """What is asked of every adapter; see `score_experts`."""

    scorer: str
    listed: bool
    max_new_tokens: int
    memory: int  # bytes


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
        self.shared = shares_prompts(lm.model, max(shot.longest for shot in asked))
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
    def run(self, adapters: Sequence[Adapter]) -> None:
        """Compute what is not known yet of some adapters, together.

        Batches follow from adapters, shots and settings alone: one that was interrupted is made up again of
        the same rows, so that results are the same to the last bit.

        Raises:
            AdapterError: An adapter cannot be read or does not fit.
        """
        with row_experts(self.lm.model, [adapter.load() for adapter in adapters]) as rows:
            sizes = [likelihood_bytes(self.lm.model, shot, shared=self.shared) for shot in self.asked]
            for pairs in product_batches(sizes, len(adapters), self.settings.memory):
                self._likelihoods(rows, adapters, pairs)
            if not self.by_likelihood:
                self._answers(rows, adapters)

    def results(self, adapter: Adapter) -> list[ShotResult]:
        """Return what an adapter does on each shot, once it was run.

        Raises:
            AdapterError: A likelihood is not a number.
        """
        return [self._result(adapter, shot) for shot in range(len(self.asked))]

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
        keys = [self._nll_key(adapters[adapter], shot) for adapter, shot in pairs]
        if not all(key in self.store for key in keys):
            started = time.perf_counter()
            groups = [self.asked[shot].targets for _, shot in pairs]
            owners = [adapter for adapter, _ in pairs]
            if self.shared:
                rows.use(owners)
                nll = shared_nll(self.lm.model, [share_prompt(group) for group in groups], self.lm.pad_id)
            else:
                rows.use([owner for owner, group in zip(owners, groups, strict=True) for _ in group])
                nll = separate_nll(self.lm.model, groups, self.lm.pad_id)
            seconds = (time.perf_counter() - started) / len(pairs)
            found = [{"nll": _sums(group), "seconds": seconds} for group in nll]
            self.store.put(dict(zip(keys, found, strict=True)))
        if self.by_likelihood:
            self.progress(len(pairs))

    def _answers(self, rows: RowExperts, adapters: Sequence[Adapter]) -> None:
        sound = [index for index, adapter in enumerate(adapters) if self._first_fault(adapter) is None]
        self.progress((len(adapters) - len(sound)) * len(self.asked))
        sizes = [answer_bytes(self.lm.model, shot, self.settings.max_new_tokens) for shot in self.asked]
        for places in product_batches(sizes, len(sound), self.settings.memory) if sound else ():
            pairs = [(sound[place], shot) for place, shot in places]
            keys = [self._answer_key(adapters[adapter], shot) for adapter, shot in pairs]
            if not all(key in self.store for key in keys):
                self._answer(rows, pairs, keys)
            self.progress(len(pairs))

    def _answer(self, rows: RowExperts, pairs: Sequence[Pair], keys: Sequence[str]) -> None:
        started = time.perf_counter()
        result = evaluate(
            self.lm,
            [self.asked[shot].shot for _, shot in pairs],
            scorer=self.settings.scorer,
            listed=self.settings.listed,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=len(pairs),
            on_rows=lambda indices: rows.use([pairs[index][0] for index in indices]),
        )
        seconds = (time.perf_counter() - started) / len(pairs)
        found = [
            {"answer": one.prediction, "correct": one.correct, "seconds": seconds}
            for one in result.predictions
        ]
        self.store.put(dict(zip(keys, found, strict=True)))

    def _first_fault(self, adapter: Adapter) -> AskedShot | None:
        """Return the first shot whose likelihood is not a number."""
        for index, shot in enumerate(self.asked):
            if None in self.store[self._nll_key(adapter, index)]["nll"]:
                return shot
        return None

    def _result(self, adapter: Adapter, index: int) -> ShotResult:
        fault = self._first_fault(adapter)
        if fault is not None:
            dtype = str(next(self.lm.model.parameters()).dtype).removeprefix("torch.")
            raise AdapterError(
                f"expected a finite likelihood of every shot, got NaN or inf on {fault.shot.id or 'a shot'}: "
                f"its weights overflow in {dtype}; train it again or leave it out"
            )
        shot = self.asked[index]
        found = self.store[self._nll_key(adapter, index)]
        nll = dict(zip(shot.targets, found["nll"], strict=True))
        answer, correct, margin, seconds = "", False, None, found["seconds"]
        if self.by_likelihood:
            answer, correct, margin = _choose(shot, [nll[choice] for choice in shot.choices])
        else:
            given = self.store[self._answer_key(adapter, index)]
            answer, correct, seconds = given["answer"], given["correct"], seconds + given["seconds"]
        return ShotResult(
            nll=nll[shot.reasoning] / shot.reasoning.target_length,
            answer_first_nll=nll[shot.answer_first] / shot.answer_first.target_length,
            num_tokens=shot.reasoning.target_length,
            correct=correct,
            answer=answer,
            margin=margin,
            seconds=seconds,
        )


def model_key(lm: LanguageModel) -> str:
    """Return a hash that tells base models apart: settings, and the first numbers of every weight."""
    weights = [
        [name, list(weight.shape), str(weight.dtype), weight.detach().flatten()[:_PROBED].double().tolist()]
        for name, weight in lm.model.named_parameters()
    ]
    return key_of(lm.model.config.to_dict(), weights)  # type: ignore[union-attr, operator]


def _sums(nll: Sequence[np.ndarray]) -> list[float | None]:
    sums = [float(values.sum()) for values in nll]
    return [value if math.isfinite(value) else None for value in sums]


def _choose(shot: AskedShot, nll_C: Sequence[float]) -> tuple[str, bool, float]:
    """Return the choice taken, whether it is right, and the margin; C choices."""
    choices, label = shot.shot.choices, shot.shot.label
    assert choices is not None  # or the shot could not be asked
    assert label is not None
    taken = predict_choice(nll_C, choices, [choice.target_length for choice in shot.choices]).by_characters
    per_character = [nll / len(choice) for nll, choice in zip(nll_C, choices, strict=True)]
    best_other = min(value for index, value in enumerate(per_character) if index != label)
    return choices[taken], taken == label, best_other - per_character[label]
