"""How many shots and adapters each round of successive halving has."""

import math
from dataclasses import dataclass

from kshot.errors import ConfigError

FACTOR = 2  # 2 to 4 make little difference (Jamieson and Talwalkar 2016); with K of 5 to 50, 2 gives rounds
FIRST_SHOTS = 1  # ranks the bundled bank as all shots do to a Spearman of 0.93 (docs/log.md)


@dataclass(frozen=True, slots=True)
class PlannedRound:
    """A round: every adapter that is left has been on so many shots when so many are kept."""

    num_shots: int
    num_kept: int


def plan_rounds(
    num_adapters: int, num_shots: int, keep: int, *, first_shots: int = FIRST_SHOTS, factor: int = FACTOR
) -> list[PlannedRound]:
    """Return the rounds that leave `keep` adapters to be scored on all shots.

    Counted back from there: the round before has a `factor`-th of the shots and `factor` times as many
    adapters, so that rounds cost about the same, down to `first_shots`. Rounds that would drop nobody are
    left out.

    Args:
        num_adapters: To begin with; `num_entrants` says how many are worth it.
        num_shots: K.
        keep: That are left.
        first_shots: No round has fewer; at least 1.
        factor: At least 2.

    Raises:
        ConfigError: A setting is out of range.

    Reference: Karnin et al. 2013, Almost optimal exploration in multi-armed bandits; Jamieson and Talwalkar
    2016, Non-stochastic best arm identification and hyperparameter optimization.
    """
    counts = _shots_of_rounds(num_shots, first_shots, factor)
    rounds = [PlannedRound(count, keep * factor**back) for back, count in enumerate(counts)]
    return [one for one in reversed(rounds) if one.num_kept < num_adapters]


def num_entrants(num_shots: int, keep: int, *, first_shots: int = FIRST_SHOTS, factor: int = FACTOR) -> int:
    """Return with how many adapters the first round begins, if each is to drop all but a `factor`-th.

    Raises:
        ConfigError: A setting is out of range.
    """
    return int(keep * factor ** len(_shots_of_rounds(num_shots, first_shots, factor)))


def _shots_of_rounds(num_shots: int, first_shots: int, factor: int) -> list[int]:
    """Return the numbers of shots, the most first: a `factor`-th of K, and so on."""
    for setting, value, least in (("first_shots", first_shots, 1), ("factor", factor, 2)):
        if value < least:
            raise ConfigError(f"{setting} must be at least {least}, got {value}: raise it")
    counts = []
    shots = math.ceil(num_shots / factor)
    while first_shots <= shots < num_shots:
        counts.append(shots)
        num_shots, shots = shots, math.ceil(shots / factor)
    return counts
