"""Seconds that a unit of work takes: each measurement is warmed up, then repeated.

Decoding is timed at the batch size and the lengths of the run: a few prompts are run, and their keys and
values copied to fill the batch.
"""

import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from kshot.batching import pad_left
from kshot.decoding import OnRows, greedy_decode
from kshot.experts.prompt_cache import cache_prompts, join_caches, keeps_all_tokens
from kshot.language_model import LanguageModel
from kshot.prompts import TokenisedExample

REPEATS = 2  # what a probe of 20 s in all can afford
TOKENS_CPU = 512  # of a measured pass; SmolLM2-135M on two cores gains no speed from 350 on
TOKENS_ACCELERATOR = 8_192  # fewer do not fill one
SLOW_PASS_S = 3.0  # a pass that would take longer is cut to fewer rows
STEPS = 3  # of decoding, timed together
NO_END = [-1]  # no token ends an answer of the probe


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds a unit, of the fastest and of the slowest measurement."""

    low: float
    high: float


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes, to its end on an accelerator."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def rate_of(work: Callable[[], object], units: int) -> Rate:
    """Time some work of so many units again and again."""
    seconds = [timed(work) for _ in range(REPEATS)]
    return Rate(min(seconds) / units, max(seconds) / units)


def affordable(rows: Sequence[Sized], device: torch.device, seconds_a_token: float) -> int:
    """Return how many of the first rows, at least one, make a pass that is long enough and not too slow."""
    wanted = TOKENS_CPU if device.type == "cpu" else TOKENS_ACCELERATOR
    tokens = min(wanted, int(SLOW_PASS_S / max(seconds_a_token, 1e-9)))
    count, used = 0, 0
    while count < len(rows) and (not count or used + len(rows[count]) <= tokens):
        used += len(rows[count])
        count += 1
    return count


def likelihood_rate(
    lm: LanguageModel, rows: Sequence[TokenisedExample], on_rows: OnRows | None = None
) -> Rate:
    """Return seconds a token of rows whose targets are scored; `on_rows` as in `LanguageModel.token_nll`."""
    first = rows[:1]
    lm.token_nll(first, on_rows=on_rows)
    once = timed(lambda: lm.token_nll(first, on_rows=on_rows))
    some = rows[: affordable(rows, lm.device, once / len(first[0]))]
    return rate_of(lambda: lm.token_nll(some, on_rows=on_rows), sum(map(len, some)))


@torch.inference_mode()
def answer_rates(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    num_rows: int,
    *,
    copies: bool = True,
    on_rows: OnRows | None = None,
) -> tuple[Rate, Rate]:
    """Return seconds a token read, and a token decoded.

    Args:
        lm: The model as it is now.
        prompts: Token ids, two or more in each; as many are run as fit a short pass.
        num_rows: Decoded at once in the run.
        copies: Whether a batch may be filled with copies, as it may not where routers remember each prompt.
        on_rows: As in `greedy_decode`.
    """
    lm.model.eval()
    copies = copies and keeps_all_tokens(lm.model)
    one = _Decoding(lm, prompts[:1], on_rows)
    one.read()
    once = timed(one.read)
    some = prompts[: affordable(prompts, lm.device, once / len(prompts[0]))]
    few = _Decoding(lm, some, on_rows)
    read = rate_of(few.read, sum(len(prompt) - 1 for prompt in some))
    if copies:
        seconds, decoded = [few.steps_after_copies(num_rows) for _ in range(REPEATS)], num_rows * STEPS
    else:
        seconds, decoded = [few.steps_after_prompts() for _ in range(REPEATS)], len(some) * STEPS
    return read, Rate(min(seconds) / decoded, max(seconds) / decoded)


class _Decoding:
    """Some prompts and what comes after them."""

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], on_rows: OnRows | None) -> None:
        self._lm, self._on_rows = lm, on_rows
        self._rows = [TokenisedExample(tuple(prompt), len(prompt)) for prompt in prompts]

    def read(self) -> None:
        """Run the prompts, with one step."""
        self._decode(self._rows, 1)

    def steps_after_prompts(self) -> float:
        """Return the seconds of some steps of these prompts."""
        return max(timed(lambda: self._decode(self._rows, 1 + STEPS)) - timed(self.read), 1e-6)

    def steps_after_copies(self, num_rows: int) -> float:
        """Return the seconds of some steps of a batch that is filled with copies."""
        order = [place % len(self._rows) for place in range(num_rows)]
        if self._on_rows:
            self._on_rows(list(range(len(self._rows))))
        prompts, width = [row.input_ids for row in self._rows], max(map(len, self._rows)) - 1
        cached = cache_prompts(self._lm.model, prompts, self._lm.pad_id, width)
        cache = join_caches([cached], order).to_cache(self._lm.model)
        rows = [self._rows[place] for place in order]
        return timed(lambda: self._decode(rows, STEPS, cache))

    def _decode(
        self, rows: Sequence[TokenisedExample], steps: int, cache: DynamicCache | None = None
    ) -> None:
        greedy_decode(
            self._lm.model,
            pad_left(rows, self._lm.pad_id, self._lm.device),
            end_ids=NO_END,
            max_new_tokens=steps,
            on_rows=self._on_rows,
            cache=cache,
        )
