"""Successive halving over shots: many adapters on a few shots, the better half of them on twice as many.

What a round has found out is kept and not computed again, so that an adapter costs only the shots that it got
to. Only likelihoods are computed: answers, which take most of the time, are for those that survive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kshot.bank import Adapter, Bank
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.experts.asked_shots import AskedShot, ask_shots, by_likelihood
from kshot.experts.batch_plan import default_memory_mb
from kshot.experts.expert_score import ExpertScore, ShotResult, summarise
from kshot.experts.halving_plan import FACTOR, FIRST_SHOTS, PlannedRound, plan_rounds
from kshot.experts.ranking import rank_adapters
from kshot.experts.score_store import ScoreStore
from kshot.experts.scoring import ADAPTERS_AT_ONCE, groups_of_adapters, usable_adapters
from kshot.experts.selection import SelectionMethod
from kshot.experts.shot_losses import MIN_SHOTS, shot_losses
from kshot.experts.shot_passes import ScoringSettings
from kshot.experts.shot_runner import ShotRunner
from kshot.language_model import LanguageModel
from kshot.progress import Advance


@dataclass(frozen=True, slots=True)
class HalvingRound:
    """What a round was, and who survived it.

    Attributes:
        num_shots: Shots that its adapters had been on at its end.
        ranking: Its adapters, best first.
        mean_nll: Of each on these shots, in nats a token.
        survivors: The first of the ranking.
    """

    num_shots: int
    ranking: tuple[str, ...]
    mean_nll: Mapping[str, float]
    survivors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Halving:
    """Who is left after all rounds.

    Attributes:
        survivors: Best first by the last round; in the order of the bank where there was none.
        rounds: In order.
        failures: By adapter, why it could not be run.
    """

    survivors: tuple[str, ...]
    rounds: tuple[HalvingRound, ...]
    failures: Mapping[str, str]


def halve_experts(
    lm: LanguageModel,
    bank: Bank,
    shots: Sequence[Example],
    *,
    keep: int,
    first_shots: int = FIRST_SHOTS,
    factor: int = FACTOR,
    method: SelectionMethod = "paper",
    scorer: str = "exact_match",
    listed: bool = False,
    memory_mb: int | None = None,
    store: ScoreStore | None = None,
    progress: Advance | None = None,
) -> Halving:
    """Drop adapters round by round until `keep` are left, by the ranking of the method on the shots so far.

    Where the task generates, that is a ranking by likelihood alone; on one shot `robust` ranks as `paper`. A
    round cuts at a number, whether or not
    the adapters at the cut differ by more than noise: what is to be safe is kept by a larger `keep`. Shots
    come in an order that is drawn once, whatever the order they are given in.

    Args:
        lm: The base model.
        bank: The adapters to begin with.
        shots: The K examples.
        keep: Adapters that survive; a smaller bank survives as it is, and nothing is run.
        first_shots: As in `plan_rounds`.
        factor: As in `plan_rounds`.
        method: As in `select_experts`.
        scorer: As in `kshot.evaluate`.
        listed: As in `kshot.evaluate`.
        memory_mb: As in `score_experts`.
        store: As in `score_experts`, which takes from it what rounds found out.
        progress: Called with the number of (adapter, shot) pairs just finished.

    Raises:
        ConfigError: A setting is out of range.
        ExampleError: There are no shots, or one lacks what the scorer needs or does not fit the context.
        AdapterError: No adapter can be run, or `lm` has adapters already.
    """
    rounds = plan_rounds(len(bank), len(shots), keep, first_shots=first_shots, factor=factor)
    if not rounds and len(bank) > keep:
        raise ConfigError(
            f"first_shots must be at most half of the {len(shots)} shots to leave {keep} of {len(bank)} "
            f"adapters, got {first_shots}: lower it, or give more shots"
        )
    if not rounds:
        return Halving(tuple(bank.names), (), {})
    lm.model.eval()
    asked = ask_shots(lm, shots, scorer, listed=listed)
    memory_mb = default_memory_mb(lm.model) if memory_mb is None else memory_mb
    settings = ScoringSettings(scorer, listed, max_new_tokens=1, memory=memory_mb * 2**20)
    store = ScoreStore() if store is None else store
    failures: dict[str, str] = {}
    seen = _Seen(lm, settings, store, progress or (lambda pairs: None), failures)
    left = list(usable_adapters(lm.model, bank, failures))
    order = np.random.default_rng(0).permutation(len(asked))
    done: list[HalvingRound] = []
    for planned in rounds:
        fresh = [asked[place] for place in sorted(order[seen.num_shots : planned.num_shots])]
        scores = seen.extend(left, fresh)
        if not scores:
            name, reason = next(iter(failures.items()))
            raise AdapterError(
                f"expected at least one adapter that can be run, got {len(failures)} that cannot; "
                f"{name}: {reason}"
            )
        done.append(_rank(scores, planned, method))
        left = [bank[name] for name in done[-1].survivors]
    if by_likelihood(scorer, listed=listed):  # else the rest of their likelihoods comes with the answers
        seen.extend(left, [asked[place] for place in sorted(order[seen.num_shots :])])
    return Halving(done[-1].survivors, tuple(done), failures)


class _Seen:
    """What the adapters that are left did on the shots so far."""

    def __init__(
        self,
        lm: LanguageModel,
        settings: ScoringSettings,
        store: ScoreStore,
        advance: Advance,
        failures: dict[str, str],
    ) -> None:
        self.lm = lm
        self.settings = settings
        self.store = store
        self.advance = advance
        self.failures = failures
        self.num_shots = 0
        self.num_rationales = 0
        self._results: dict[str, list[ShotResult]] = {}

    def extend(self, adapters: Sequence[Adapter], fresh: Sequence[AskedShot]) -> list[ExpertScore]:
        """Run adapters on further shots, these alone, and return their scores on all of them so far."""
        runner = ShotRunner(self.lm, fresh, self.settings, self.store, lambda pairs: None)
        self.num_shots += len(fresh)
        self.num_rationales += sum(bool(one.shot.rationale) for one in fresh)
        scores = []
        for group in groups_of_adapters(self.lm.model, adapters, ADAPTERS_AT_ONCE):
            runner.run(group, answers=False)
            for adapter in group:
                try:
                    results = runner.likelihoods(adapter)
                except AdapterError as error:
                    self.failures[adapter.name] = str(error)
                    continue
                self._results.setdefault(adapter.name, []).extend(results)
                scores.append(summarise(adapter.name, self._results[adapter.name], self.num_rationales))
            self.advance(len(group) * len(fresh))
        return scores


def _rank(scores: Sequence[ExpertScore], planned: PlannedRound, method: SelectionMethod) -> HalvingRound:
    losses = shot_losses(scores) if method == "robust" and planned.num_shots >= MIN_SHOTS else None
    ranking = tuple(one.name for one in rank_adapters(scores, losses))
    mean_nll = {score.name: score.mean_nll for score in scores}
    return HalvingRound(
        planned.num_shots, ranking, {name: mean_nll[name] for name in ranking}, ranking[: planned.num_kept]
    )
