"""Servers that answer with numbers which are none, with other tokens, or with those of the base."""

from collections.abc import Callable
from typing import Any

import pytest

from kshot.errors import SourceError

from ..endpoint.server import Reply
from .completions_server import BASE
from .shots import SHOTS


def _last(choice: dict[str, Any], value: Any) -> None:
    if choice["prompt_logprobs"]:
        (entry,) = choice["prompt_logprobs"][-1].values()
        entry["logprob"] = value


NO_NUMBERS = [
    (float("nan"), "expected finite log-probabilities, got nan"),
    (float("-inf"), "expected finite log-probabilities, got -inf"),
    (-9999.0, "expected finite log-probabilities, got -9999.0"),
    (10**400, "expected log-probabilities of at most 0, got 1000"),
    (0.5, "expected log-probabilities of at most 0, got 0.5"),
    (None, "expected a log-probability, got None"),
    ("-1", "expected a log-probability, got '-1'"),
    (True, "expected a log-probability, got True"),
]


def test_numbers_that_are_none_are_a_failure_of_that_adapter(bank, score_at, serve) -> None:
    server = serve()
    for value, message in NO_NUMBERS:
        server.change(lambda choice, value=value: _last(choice, value), model="first")
        done: list[int] = []
        scores = score_at(server, SHOTS[:1], progress=done.append)
        assert [score.name for score in scores] == ["second"]
        assert scores.failures["first"].startswith(f"a: {message}")
        assert sum(done) == len(bank)


def test_numbers_that_are_none_for_the_base_too(score_at, serve) -> None:
    server = serve(knows=("prompt_logprobs",))
    server.change(lambda choice: _last(choice, 0.5))
    message = "got none that can be used; with prompt_logprobs: expected log-probabilities of at most 0, got"
    with pytest.raises(SourceError, match=message):
        score_at(server)


OTHER_TOKENS: list[tuple[Callable[[list[Any]], Any], str]] = [
    (lambda entries: entries.pop(), "expected log-probabilities of the "),
    (lambda entries: entries.insert(0, None), "expected log-probabilities of the "),
    (lambda entries: entries.__setitem__(-1, None), "expected the log-probability of token "),
    (
        lambda entries: entries.__setitem__(-1, {"5": {"logprob": -1}}),
        "expected the log-probability of token ",
    ),
    (lambda entries: entries.__setitem__(-1, [1]), "expected the log-probability of token "),
]


def test_other_tokens_than_were_sent(score_at, serve) -> None:
    server = serve()
    for change, message in OTHER_TOKENS:

        def disturb(choice: dict[str, Any], change: Callable[[list[Any]], Any] = change) -> None:
            if choice["prompt_logprobs"]:
                change(choice["prompt_logprobs"])

        server.change(disturb, model="first")
        scores = score_at(server, SHOTS[:1])
        assert scores.failures["first"].startswith(f"a: {message}")
        assert len(scores) == 1


def test_an_echo_of_other_tokens(score_at, serve) -> None:
    server = serve(knows=("echo",))

    def shifted(request: dict[str, Any], number: int) -> Reply:
        reply = server.honest(request, number)
        if request.get("echo") and request["model"] == "first":  # a begin token first, nothing behind ours
            reply.body["usage"]["prompt_tokens"] += 1
        return reply

    server.reply = shifted
    failure = score_at(server).failures["first"]
    assert "tokens sent, got" in failure


def test_a_server_without_log_probabilities_of_prompts(score_at, serve) -> None:
    server = serve(knows=())
    message = (
        rf"expected log-probabilities of a prompt from {server.url}, got none .*with prompt_logprobs: "
        r"expected prompt_logprobs, got none; with echo: .* tokens sent, got 1; serve the adapters with vLLM"
    )
    with pytest.raises(SourceError, match=message):
        score_at(server)


def test_adapters_that_are_not_applied_are_named(bank, score_at, serve) -> None:
    said: list[str] = []
    score_at(serve(applies=False), say=said.append)
    assert len(said) == 1
    named, _, rest = said[0].partition(": ")
    assert sorted(named.split(", ")) == bank.names
    assert rest.startswith(f"the same likelihood as the base '{BASE}' to the last digit")
    said.clear()
    score_at(serve(), say=said.append)
    assert said == []
