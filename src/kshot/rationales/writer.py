"""What writes rationales: any model that answers prompts, here or behind an endpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Stop = Literal["end", "length", "filter", "prompt_too_long"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        seed: Of the draw; without effect at temperature 0.
        max_new_tokens: Longest answer, in tokens.
    """

    temperature: float
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Attributes:
        text: Without the thoughts that some models write between `<think>` tags.
        tokens_in: Of the prompt; None where the endpoint does not say.
        tokens_out: Of the answer, thoughts included; None where the endpoint does not say.
        stop: Why it ended: of itself, at the token limit, or not begun at all.
        refused: Sampling settings that the model does not take.
    """

    text: str
    tokens_in: int | None
    tokens_out: int | None
    stop: Stop = "end"
    refused: tuple[str, ...] = ()


class Writer(Protocol):
    """Answers prompts, several at once."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What tells its answers from another writer's; part of each cache key and of the provenance."""
        ...

    def answers(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yield the index of a prompt and its answer, in whatever order they are ready.

        Raises:
            SourceError: The model cannot be reached, or says what is no answer.
        """
        ...
