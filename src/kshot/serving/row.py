"""One row of the running batch: from logits to a token, and from tokens to pieces of an answer.

V vocabulary
"""

from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kshot.serving.answer_text import AnswerText
from kshot.serving.generation import (
    AnswerToken,
    Deliver,
    ExpertUse,
    FinishReason,
    Generation,
    GenerationFailedError,
    Piece,
    TokenLogprob,
)
from kshot.serving.last_gates import RunningGates
from kshot.serving.sampling import Sampler


class Row:
    """A generation under way.

    Args:
        generation: What is asked for.
        tokenizer: Used by one thread at a time.
        end_ids: Tokens that end an answer; they are no part of it.
        deliver: Takes the pieces; the row leaves the batch if it raises.

    Attributes:
        cancelled: Set by any thread when no one waits for the answer any more.
        gates: Of its tokens so far, where it is asked which experts are behind them.
        last_id: The token that the next pass starts from.
        num_tokens: Generated so far.
    """

    def __init__(
        self,
        generation: Generation,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        deliver: Deliver,
    ) -> None:
        self.generation = generation
        self.cancelled = False
        self.gates = RunningGates()
        self.last_id = generation.prompt_ids[-1]
        self.num_tokens = 0
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._deliver = deliver
        self._text = AnswerText(tokenizer, generation.stop, strip=generation.strip)
        self._held: list[AnswerToken] = []
        self._sampler = (
            Sampler(generation.temperature, generation.top_p, generation.seed)
            if generation.temperature > 0
            else None
        )

    def advance(self, logits_V: Tensor, greedy_id: int, use: ExpertUse | None) -> bool:
        """Take the next token and deliver what can be shown.

        Args:
            logits_V: Of the next token.
            greedy_id: The likeliest one.
            use: The expert behind it.

        Returns:
            Whether the row goes on.
        """
        token_id = self._sampler.pick(logits_V) if self._sampler else greedy_id
        if token_id in self._end_ids:
            return self._finish("stop")
        self.last_id = token_id
        self.num_tokens += 1
        chosen, likeliest = self._logprobs(logits_V, token_id)
        start = len(self._text.text)
        added = self._text.add(token_id)
        self._held.append(AnswerToken(added, start, chosen, likeliest, use))
        if self._text.stopped:
            return self._finish("stop")
        if self.num_tokens == self.generation.max_tokens:
            return self._finish("length")
        return self._send(None)

    def fail(self, reason: str) -> None:
        """Deliver a failure in place of what is left."""
        self._hand_over(GenerationFailedError(reason))

    def _finish(self, reason: FinishReason) -> bool:
        added = self._text.finish()
        if added and self._held:
            self._held[-1] = replace(self._held[-1], text=self._held[-1].text + added)
        self._send("stop" if self._text.stopped else reason)
        return False

    def _send(self, reason: FinishReason | None) -> bool:
        """Deliver text and tokens that can be shown; tokens of a stop string never are."""
        shown = self._text.shown
        if reason and not self._text.stopped:
            tokens, self._held = self._held, []
        else:
            tokens = [token for token in self._held if token.start < shown]
            self._held = self._held[len(tokens) :]
        text = self._text.take()
        if text or tokens or reason:
            self._hand_over(Piece(text, tuple(tokens), self.num_tokens, reason))
        return not self.cancelled

    def _hand_over(self, what: Piece | GenerationFailedError) -> None:
        try:
            self._deliver(what)
        except Exception:  # whoever waited is gone, together with its event loop
            self.cancelled = True

    def _logprobs(
        self, logits_V: Tensor, token_id: int
    ) -> tuple[TokenLogprob | None, tuple[TokenLogprob, ...]]:
        count = self.generation.top_logprobs
        if count is None:
            return None, ()
        logprobs_V = logits_V.float().log_softmax(dim=-1)
        values, ids = logprobs_V.topk(count)
        likeliest = zip(ids.tolist(), values.tolist(), strict=True)
        return self._named(token_id, float(logprobs_V[token_id])), tuple(
            self._named(one, value) for one, value in likeliest
        )

    def _named(self, token_id: int, logprob: float) -> TokenLogprob:
        text = self._tokenizer.decode([token_id])
        assert isinstance(text, str)  # one list of ids, not several
        return TokenLogprob(text, logprob)
