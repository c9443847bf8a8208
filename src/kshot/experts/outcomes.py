"""Scores and failures of a bank's adapters as they become known."""

from collections.abc import Callable, Sequence
from typing import Protocol

from kshot.bank import Adapter, Bank
from kshot.errors import AdapterError
from kshot.experts.asked_shots import AskedShot
from kshot.experts.expert_score import ExpertScore, Scores, ShotResult, summarise


class Runner(Protocol):
    """What knows the shots, and what adapters that were run did on them."""

    @property
    def asked(self) -> Sequence[AskedShot]:
        """The shots."""
        ...

    def results(self, adapter: Adapter) -> list[ShotResult]:
        """Return what an adapter does on each shot.

        Raises:
            AdapterError: A likelihood is not a number.
        """
        ...


class Outcomes:
    """Scores and failures as they become known.

    Attributes:
        scores: By adapter name.
        failures: By adapter name; who finds one puts it here.
    """

    def __init__(self, runner: Runner, on_score: Callable[[ExpertScore], None] | None) -> None:
        self.runner = runner
        self.on_score = on_score
        self.scores: dict[str, ExpertScore] = {}
        self.failures: dict[str, str] = {}

    def conclude(self, adapters: Sequence[Adapter]) -> None:
        """Sum up adapters that were run."""
        num_rationales = sum(bool(one.shot.rationale) for one in self.runner.asked)
        for adapter in adapters:
            try:
                score = summarise(adapter.name, self.runner.results(adapter), num_rationales)
            except AdapterError as error:
                self.failures[adapter.name] = str(error)
                continue
            self.scores[adapter.name] = score
            if self.on_score:
                self.on_score(score)

    def in_order_of(self, bank: Bank) -> Scores:
        """Return them all.

        Raises:
            AdapterError: There is no score.
        """
        if not self.scores:
            name, reason = next(iter(self.failures.items()))
            raise AdapterError(
                f"expected at least one adapter that can be scored, got {len(self.failures)} that cannot; "
                f"{name}: {reason}"
            )
        return Scores(
            tuple(self.scores[name] for name in bank.names if name in self.scores),
            {name: self.failures[name] for name in bank.names if name in self.failures},
        )
