"""A local server that speaks `/v1/chat/completions`, and a writer that says what a test tells it to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from kshot.rationales import Answer, Sampling

from ..endpoint.server import LocalServer, Reply


def says(text: Any, *, finish: str = "stop", usage: Any = (40, 12)) -> Reply:
    """A chat completion."""
    counts = usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish}]
    return Reply(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": choices,
            "usage": counts,
        }
    )


class ChatServer(LocalServer):
    """Says the same until it is told something else."""

    def __init__(self) -> None:
        super().__init__(lambda request, number: says("Answer: 4\nIt is so."))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = ChatServer()
    yield found
    found.close()


@dataclass
class Scripted:
    """Says `say(prompt, sampling)`, last prompt first."""

    say: Callable[[str, Sampling], str | Answer]
    identity: Mapping[str, str] = field(default_factory=lambda: {"model": "scripted"})
    asked: list[tuple[str, Sampling]] = field(default_factory=list)

    def answers(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        for index in reversed(range(len(prompts))):
            self.asked.append((prompts[index], sampling))
            said = self.say(prompts[index], sampling)
            yield index, said if isinstance(said, Answer) else Answer(said, 10, 5)
