"""A model behind an endpoint: a local server that speaks `/v1/chat/completions`."""

import re
import socket
import sys
import threading
import time
import traceback
from itertools import pairwise
from typing import Any

import pytest

from kshot.errors import ConfigError, KshotError, MissingExtraError, SourceError
from kshot.rationales import Answer, EndpointWriter, Sampling

from ..endpoint.server import Reply, fails
from .conftest import ChatServer, says

GREEDY = Sampling(0.0, 0, 64)
KEY = "sk-very-secret"


def _ask(server: ChatServer, prompts=("why?",), sampling: Sampling = GREEDY, **settings: Any) -> list[Answer]:
    settings = {"timeout_s": 5, "retries": 0} | settings
    found = dict(EndpointWriter(server.url, "m", **settings).answers(prompts, sampling))
    return [found[index] for index in range(len(prompts))]


def _failure(server: ChatServer, **settings: Any) -> str:
    with pytest.raises(SourceError) as raised:
        _ask(server, **settings)
    assert "\n" not in str(raised.value)
    assert KEY not in "".join(traceback.format_exception(raised.value))
    return str(raised.value)


def test_what_is_sent_and_read(server: ChatServer) -> None:
    server.reply = lambda request, number: says(request["messages"][0]["content"] + "!")
    assert _ask(server, ["a", "b", "c"]) == [Answer(f"{text}!", 40, 12) for text in "abc"]
    assert server.requests[0] == {
        "path": "/v1/chat/completions",
        "model": "m",
        "messages": [{"role": "user", "content": server.requests[0]["messages"][0]["content"]}],
        "temperature": 0.0,
        "max_tokens": 64,
    }
    _ask(server, sampling=Sampling(0.7, 5, 64))
    assert (server.requests[-1]["temperature"], server.requests[-1]["seed"]) == (0.7, 5)


def test_answers_come_as_they_are_ready(server: ChatServer) -> None:
    go_on = threading.Event()

    def reply(request: dict[str, Any], number: int) -> Reply:
        assert request["messages"][0]["content"] == "fast" or go_on.wait(5)
        return says("x")

    server.reply = reply
    answers = EndpointWriter(server.url, "m", retries=0).answers(["slow", "fast"], GREEDY)
    assert next(answers)[0] == 1
    go_on.set()
    assert next(answers)[0] == 0


def test_requests_at_once(server: ChatServer) -> None:
    meeting = threading.Barrier(3, timeout=5)

    def reply(request: dict[str, Any], number: int) -> Reply:
        meeting.wait()
        return says("x")

    server.reply = reply
    assert len(_ask(server, ["a"] * 6, concurrency=3)) == 6
    assert server.most_under_way == 3


def test_the_rate_limit_holds_for_retries_too(server: ChatServer) -> None:
    starts: list[float] = []

    def reply(request: dict[str, Any], number: int) -> Reply:
        starts.append(time.monotonic())
        return fails(429) if number == 1 else says("x")

    server.reply = reply
    _ask(server, ["a", "b"], requests_per_minute=600, retries=2)
    gaps = [later - sooner for sooner, later in pairwise(starts)]
    assert len(gaps) == 2
    assert min(gaps) > 0.08  # 0.1 s apart, less what a thread may be late


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (says("Answer: 4", finish="length"), Answer("Answer: 4", 40, 12, "length")),
        (says(None, finish="content_filter"), Answer("", 40, 12, "filter")),
        (says(None), Answer("", 40, 12)),
        (says("<think>\nhm\nAnswer: 3\n</think>\n\nAnswer: 4"), Answer("Answer: 4", 40, 12)),
        (says("<think>\nhm", finish="length"), Answer("", 40, 12, "length")),
        (says("x", usage=None), Answer("x", None, None)),
        (says("half \ud83d"), Answer("half ?", 40, 12)),
        (fails(400, "no", code="content_filter"), Answer("", None, None, "filter")),
        (fails(400, "no", code="context_length_exceeded"), Answer("", None, None, "prompt_too_long")),
    ],
)
def test_kinds_of_answers(server: ChatServer, reply: Reply, expected: Answer) -> None:
    server.reply = lambda request, number: reply
    assert _ask(server) == [expected]


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_what_may_pass_is_tried_again(server: ChatServer, status: int) -> None:
    server.reply = lambda request, number: fails(status) if number < 2 else says("x")
    assert _ask(server, retries=2) == [Answer("x", 40, 12)]
    assert len(server.requests) == 3


def test_settings_that_the_model_does_not_take(server: ChatServer) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        if "max_tokens" in request:
            return fails(400, "use max_completion_tokens", code="unsupported_parameter", param="max_tokens")
        if "temperature" in request:
            return fails(400, "only 1", code="unsupported_value", param="temperature")
        return says("x")

    server.reply = reply
    answers = _ask(server, ["a", "b"], Sampling(0.7, 5, 64), concurrency=1)
    assert answers == [Answer("x", 40, 12, refused=("temperature",))] * 2
    assert len(server.requests) == 4  # it is asked twice in vain, and remembers
    assert server.requests[-1]["max_completion_tokens"] == 64
    assert server.requests[-1]["seed"] == 5
    server.reply = lambda request, number: fails(400, "no", code="unsupported_value", param="model")
    assert "got: 400 no" in _failure(server)
    server.reply = lambda request, number: fails(400, "no", code="unsupported_value", param="seed")
    assert "got: 400 no" in _failure(server)  # it was not sent


def test_the_key(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask(server)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _ask(server)
    monkeypatch.setenv("MINE", f" {KEY}2\n")
    _ask(server, api_key_env="MINE")
    assert server.keys == ["Bearer none", f"Bearer {KEY}", f"Bearer {KEY}2"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_turned_down_is_not_repeated(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.reply = lambda request, number: fails(status, f"wrong key\n{KEY}")
    message = _failure(server, retries=3)
    assert f"expected an API key that {server.url} takes, got: {status} wrong key ***" in message
    assert "set OPENAI_API_KEY" in message
    assert len(server.requests) == 1


def test_limits_that_stay_used_up(server: ChatServer) -> None:
    server.reply = lambda request, number: fails(429, "quota")
    assert "are used up: 429 quota" in _failure(server, retries=1)
    assert len(server.requests) == 2


def test_no_such_model(server: ChatServer) -> None:
    server.reply = lambda request, number: fails(404, "no model m")
    assert f"expected model 'm' at {server.url}, got: 404 no model m" in _failure(server)


def test_an_endpoint_that_does_not_answer_in_time(server: ChatServer) -> None:
    go_on = threading.Event()
    server.reply = lambda request, number: says(str(go_on.wait(5)))
    assert "in time, got none; raise --timeout-s" in _failure(server, timeout_s=0.1)
    go_on.set()


def test_a_connection_that_is_refused(server: ChatServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        assert f"cannot reach {server.url}: [Errno 111] Connection refused" in _failure(server)


def test_a_host_that_does_not_exist(server: ChatServer) -> None:
    server.url = "http://no-such-host.invalid/v1"
    assert "cannot reach http://no-such-host.invalid/v1: " in _failure(server)


@pytest.mark.parametrize(
    "body",
    [
        b"{nonsense",
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": ["x"]}}]}',
        b'{"error": {"message": "oh"}}',
    ],
)
def test_what_is_no_chat_completion(server: ChatServer, body: bytes) -> None:
    server.reply = lambda request, number: Reply(body)
    assert re.match(f"expected (a chat completion|JSON) from {server.url}, got", _failure(server))


def test_a_web_page(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    page = f"<html>\n{KEY} {'x' * 5000}</html>".encode()
    server.reply = lambda request, number: Reply(page, headers={"Content-Type": "text/html"})
    message = _failure(server)
    assert "expected a chat completion from" in message
    assert len(message) < 600


def test_a_failure_ends_the_whole(server: ChatServer) -> None:
    server.reply = lambda request, number: says("x") if number < 3 else fails(400, "enough")
    seen = []
    with pytest.raises(SourceError, match="enough"):
        seen.extend(EndpointWriter(server.url, "m", retries=0, concurrency=1).answers(["a"] * 50, GREEDY))
    assert len(server.requests) == 4
    assert seen == [(index, Answer("x", 40, 12)) for index in range(3)]


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:x/v1", "http://[::1/v1", "http://host:0"],
)
def test_what_is_no_endpoint(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an endpoint such as"):
        EndpointWriter(url, "m")


@pytest.mark.parametrize("url", ["http://me:pass@host/v1", "http://host/v1?key=pass", "http://host/v1#pass"])
def test_an_endpoint_that_holds_a_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an endpoint without user name, password") as raised:
        EndpointWriter(url, "m")
    assert "pass@" not in str(raised.value)
    assert "=pass" not in str(raised.value)


def test_forms_of_an_endpoint(server: ChatServer) -> None:
    plain = EndpointWriter(server.url, "m").identity
    assert plain == {"model": "m", "endpoint": server.url}
    for form in (server.url + "/", server.url + "/chat/completions", f" {server.url} "):
        assert EndpointWriter(form, "m").identity == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"timeout_s": 0}, "timeout_s must be above 0, got 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be above 0, got nan"),
        ({"requests_per_minute": 0}, "requests_per_minute must be above 0"),
        ({"model": " "}, "expected the name of a model"),
        ({"api_key_env": "NOT_SET"}, "expected an API key in the environment variable NOT_SET"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EndpointWriter("http://localhost/v1", **({"model": "m"} | settings))


@pytest.mark.parametrize("key", ["sk-ö", "sk a", "sk\x07"])
def test_a_key_that_no_header_holds(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MINE", key)
    with pytest.raises(ConfigError, match="expected an API key of plain letters") as raised:
        EndpointWriter("http://localhost/v1", "m", api_key_env="MINE")
    assert key not in str(raised.value)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kshot\[endpoint\]'") as raised:
        EndpointWriter("http://localhost/v1", "m")
    assert isinstance(raised.value, KshotError)
