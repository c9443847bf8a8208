"""Interleaved timing: every side runs in turn, round after round, so that drift of the machine hits all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Seconds = dict[str, dict[int, float]]


@dataclass(frozen=True, slots=True)
class Side:
    """What is timed.

    Attributes:
        run: One repetition.
        every: Rounds from one repetition to the next; above 1 for slow sides that no target is about.
        prepare: Called before each repetition, outside the time.
    """

    run: Callable[[], object]
    every: int = 1
    prepare: Callable[[], object] | None = None


def interleave(sides: Mapping[str, Side], rounds: int) -> Seconds:
    """Time every side in each round it takes part in, and drop its first repetition.

    Round i begins with side i, so that no side always follows the same one.

    Returns:
        Seconds by side and round.
    """
    names = list(sides)
    seconds: Seconds = {name: {} for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in [*names[start:], *names[:start]]:
            side = sides[name]
            if number % side.every:
                continue
            if side.prepare:
                side.prepare()
            started = time.perf_counter()
            side.run()
            seconds[name][number] = time.perf_counter() - started
    return {name: {number: one for number, one in taken.items() if number} for name, taken in seconds.items()}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Quartiles, over rounds, of the time of a side by that of another in the same round."""

    q1: float
    median: float
    q3: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.q1:.3f}, {self.q3:.3f}]"


def paired_ratio(seconds: Seconds, side: str, over: str) -> Ratio:
    """Compare two sides in the rounds that both took part in."""
    both = seconds[side].keys() & seconds[over].keys()
    return Ratio(*quartiles([seconds[side][number] / seconds[over][number] for number in sorted(both)]))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile, ends included; one value is all three."""
    if len(values) == 1:
        return (values[0],) * 3
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, median, q3


def median(seconds: Seconds, side: str) -> float:
    """Return the median seconds of a side."""
    return statistics.median(seconds[side].values())


def rounded(seconds: Seconds) -> dict[str, list[float]]:
    """Return the seconds of each round to 0.1 ms, for JSON."""
    return {name: [round(one, 4) for one in taken.values()] for name, taken in seconds.items()}
