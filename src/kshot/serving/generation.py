"""One answer to be generated: what the engine is asked for, and what it gives back piece by piece."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request asks of the engine.

    Attributes:
        adapter: PEFT's name of the expert, or `BASE_ROWS`.
        prompt_ids: At least one token.
        max_tokens: Longest answer, in tokens, >= 1.
        temperature: 0 takes the likeliest token each time.
        top_p: Probability mass that is drawn from, in (0, 1].
        seed: The same seed gives the same answer, whatever else is in the batch; None draws one.
        stop: Texts that end the answer and are left out of it.
        strip: Leave out white space around the answer, as `LanguageModel.generate` does.
        top_logprobs: Likeliest tokens to name beside each token; None: no log-probabilities at all.
        experts: Say for each token which expert of the mixture had most to say.
    """

    adapter: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    strip: bool = False
    top_logprobs: int | None = None
    experts: bool = False

    @property
    def longest(self) -> int:
        """Tokens of prompt and longest answer together."""
        return len(self.prompt_ids) + self.max_tokens


@dataclass(frozen=True, slots=True)
class ExpertUse:
    """The expert whose gate at a token lies farthest above its mean over prompt and answer so far.

    Attributes:
        expert: Its name in the mixture.
        weight: Its gate, a mean over the modules of the mixture.
        above_mean: By how much; 0 if no gate rises, and then it is the expert with the largest.
    """

    expert: str
    weight: float
    above_mean: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the log-probability that the model gave it, before temperature and top_p.

    Attributes:
        text: The token decoded alone; of a part of a character it is U+FFFD.
        logprob: In nats.
    """

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class AnswerToken:
    """One token of an answer.

    Attributes:
        text: What it added to the text, so that the texts of all tokens are the text.
        start: Where in the text.
        chosen: Its log-probability, if asked for.
        likeliest: Those of the likeliest tokens, best first.
        use: The expert behind it, if asked for and there is one.
    """

    text: str
    start: int
    chosen: TokenLogprob | None = None
    likeliest: tuple[TokenLogprob, ...] = ()
    use: ExpertUse | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer.

    Attributes:
        text: May be empty.
        tokens: Those that the text so far is made of and that no piece before had.
        num_tokens: Generated so far, the end token not counted.
        finish_reason: Of the last piece: the answer ended, or `max_tokens` were reached.
    """

    text: str
    tokens: tuple[AnswerToken, ...]
    num_tokens: int
    finish_reason: FinishReason | None


class GenerationFailedError(RuntimeError):
    """The model failed, or the engine was closed; the request is not at fault."""


Deliver = Callable[[Piece | GenerationFailedError], None]
"""Called by the engine's thread with each piece; the last is a failure or has a reason to finish."""
