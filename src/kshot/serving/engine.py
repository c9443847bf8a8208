"""Continuous batching: one thread runs the model; requests join and leave its batch between two tokens."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from typing import cast

import torch
from peft import PeftModel

from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.serving.cached_rows import check_joinable
from kshot.serving.generation import Deliver, Generation
from kshot.serving.row import Row
from kshot.serving.running_batch import RunningBatch

MAX_ROWS = 64  # decoded at once, as in LanguageModel.generate: 13 times the tokens a second of one row
MAX_BATCH_TOKENS = (
    32_768  # rows of 512 tokens, 64 of them: 1.5 GB of keys and values of SmolLM2-135M in float32
)
MAX_WAITING = 256  # four batches: at a few seconds each, who is further back would give up anyway
PREFILL_TOKENS = 2048  # padded, of prompts read in one pass, for which the rows under way wait
_LOG = logging.getLogger(__name__)

Cancel = Callable[[], None]


class QueueFullError(RuntimeError):
    """So many requests wait already that another would wait too long."""


class Engine:
    """Runs generations of many experts in one batch.

    Rows are let in in the order in which they came, as long as the batch could hold each of them at its full
    length: rows x the longest of them stay within `max_batch_tokens`, so that memory does not run out later.

    Args:
        lm: Its model is a base with mixtures.
        max_rows: Most rows of the batch.
        max_batch_tokens: Most tokens of the batch, padding included.
        max_waiting: Most requests outside of the batch.

    Raises:
        ConfigError: A limit is below 1, or the base keeps more than keys and values.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        max_rows: int = MAX_ROWS,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        limits = {"max_rows": max_rows, "max_batch_tokens": max_batch_tokens, "max_waiting": max_waiting}
        for setting, value in limits.items():
            if value < 1:
                raise ConfigError(f"{setting} must be at least 1, got {value}: raise it")
        model = cast(PeftModel, lm.model.eval())
        check_joinable(model)
        self.max_length = min(lm.max_length, max_batch_tokens)
        self._max_rows, self._max_batch_tokens, self._max_waiting = max_rows, max_batch_tokens, max_waiting
        self._tokenizer = deepcopy(lm.tokenizer)  # this thread's own: they are not made for several
        own_ends = getattr(model.generation_config, "eos_token_id", None)
        self._end_ids = frozenset(lm.template.end_ids(own_ends))
        self._batch = RunningBatch(model, lm.pad_id, lm.device)
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="kshot-engine", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation, deliver: Deliver) -> Cancel:
        """Queue a generation.

        Args:
            generation: At most `max_length` tokens long, answer included.
            deliver: Called by the engine's thread.

        Returns:
            What takes the row out of the queue or the batch, at the next token; may be called at any time.

        Raises:
            QueueFullError: Too many wait, or the engine is closed.
        """
        assert 1 <= len(generation.prompt_ids) < generation.longest <= self.max_length
        row = Row(generation, self._tokenizer, self._end_ids, deliver)
        with self._changed:
            if self._closing or len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests are waiting")
            self._waiting.append(row)
            self._changed.notify()

        def cancel() -> None:
            row.cancelled = True

        return cancel

    def close(self) -> None:
        """Stop after the token that is being computed, and fail what is left."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Requests outside of the batch."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows of the batch."""
        return len(self._batch.rows)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether another request would be taken."""
        return self.is_alive and not self._closing and self.num_waiting < self._max_waiting

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._batch.rows):
                    self._changed.wait()
                if self._closing:
                    left = [*self._batch.clear(), *self._waiting]
                    self._waiting.clear()
                    break
            self._pass_on()
        for row in left:
            row.fail("the server is shutting down")

    def _pass_on(self) -> None:
        """Take one more token of every row, with the rows that can be let in."""
        self._batch.drop_cancelled()
        newcomers = self._let_in()
        if newcomers:
            try:
                self._batch.add(newcomers)
            except Exception:  # of whatever kind: others must be answered
                self._fail(newcomers)
        if self._batch.rows:
            try:
                self._batch.step()
            except Exception:
                self._fail(self._batch.clear())

    def _let_in(self) -> list[Row]:
        newcomers: list[Row] = []
        rows, longest_prompt = len(self._batch.rows), 0
        longest = max((row.generation.longest for row in self._batch.rows), default=0)
        with self._changed:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            while self._waiting and rows < self._max_rows:
                generation = self._waiting[0].generation
                longest = max(longest, generation.longest)
                longest_prompt = max(longest_prompt, len(generation.prompt_ids))
                too_long = newcomers and (len(newcomers) + 1) * longest_prompt > PREFILL_TOKENS
                if too_long or (rows + 1) * longest > self._max_batch_tokens:
                    break
                newcomers.append(self._waiting.popleft())
                rows += 1
        return newcomers

    def _fail(self, rows: list[Row]) -> None:
        _LOG.exception("the model failed on a batch of %d", len(rows))
        for row in rows:
            row.fail("the model failed on the batch that this request was in: see the log of the server")
