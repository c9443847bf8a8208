"""Scores from a server against scores computed here, and servers that fail in every way."""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kshot.bank import Bank
from kshot.bank.adapter import WEIGHTS, Adapter, describe
from kshot.config import EndpointConfig
from kshot.errors import AdapterError, ConfigError, ExampleError, MissingExtraError, SourceError
from kshot.examples import Example
from kshot.experts import Scores, ScoreStore, ServedBase, score_at_endpoint, score_experts
from kshot.experts.endpoint_names import check_names

from ..endpoint.server import Reply, fails
from .completions_server import BASE, ModelServer

SHOTS = [
    Example("add one and two", "three", answer="three", rationale="one and two is three", id="a"),
    Example("say cat", "the cat", id="b"),
    Example("count", "one two three four five", rationale="start at one", id="c"),
]
QUESTIONS = [
    Example(
        "Which? A: yes B: no", "B", choices=("yes", "no, not at all"), label=1, question="Which one?", id="q"
    ),
    Example("What? A: 1 B: 2 C: 3", "A", choices=("1", "2", "3"), label=0, question="What?", rationale="so"),
]
NAMES = ["first", "second"]
PAIRS = len(NAMES) * len(SHOTS)


@pytest.fixture
def bank(lora_folder) -> Bank:
    folders = [lora_folder("first", seed=1), lora_folder("second", seed=2, r=2)]
    return Bank([Adapter(folder, describe(folder, folder.name)) for folder in folders])


@pytest.fixture
def base(tiny_model_folder: Path) -> ServedBase:
    return ServedBase.load(str(tiny_model_folder))


@pytest.fixture
def serve(
    tiny_model_folder: Path, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ModelServer]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    started: list[ModelServer] = []

    def start(prefix: str = "", **settings: Any) -> ModelServer:
        adapters = {prefix + adapter.name: adapter.folder for adapter in bank}
        started.append(ModelServer(tiny_model_folder, adapters, **settings))
        return started[-1]

    yield start
    for server in started:
        server.close()


def _score(server: ModelServer, base: ServedBase, bank: Bank, shots=SHOTS, **settings: Any) -> Scores:
    given = {key: settings.pop(key) for key in list(settings) if key in EndpointConfig.model_fields}
    endpoint = EndpointConfig(**{"url": server.url, "timeout_s": 5, "concurrency": 2} | given)
    return score_at_endpoint(base, bank, shots, endpoint, **{"max_new_tokens": 4, "retries": 0} | settings)


def _changed(
    server: ModelServer, change: Callable[[dict[str, Any]], Any], *, model: str | None = None
) -> None:
    """Let a server change its completions, of one model alone if one is named; `change` gets the choice."""

    def reply(request: dict[str, Any], number: int) -> Reply:
        honest = server.honest(request, number)
        if request["path"] == "/v1/completions" and model in (None, request["model"]):
            change(honest.body["choices"][0])
        return honest

    server.reply = reply


@pytest.mark.parametrize("knows", [("prompt_logprobs",), ("echo",)])
def test_against_scores_computed_here(knows, tiny_lm, base, bank, serve) -> None:
    server = serve(knows=knows)
    told: list[str] = []
    done: list[int] = []
    found = _score(server, base, bank, on_score=lambda score: told.append(score.name), progress=done.append)
    local = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    assert [score.name for score in found] == NAMES == sorted(told)
    assert found.failures == {}
    assert sum(done) == PAIRS
    for one, other in zip(found, local, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        for field in ("reasoning_ppl", "answer_first_ppl", "mean_nll", "median_nll"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-4)
        for field in ("accuracy", "shot_answer", "shot_correct", "shot_margin", "n", "num_rationales"):
            assert getattr(one, field) == getattr(other, field)
        assert one.num_tokens == other.num_tokens
        assert one.seconds > 0
    assert len({score.shot_answer for score in found}) > 1


def test_multiple_choice_against_scores_computed_here(tiny_lm, base, bank, serve) -> None:
    found = _score(serve(), base, bank, QUESTIONS, scorer="multiple_choice")
    local = score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice")
    for one, other in zip(found, local, strict=True):
        assert one.shot_answer == other.shot_answer
        assert one.shot_margin == pytest.approx(other.shot_margin, rel=1e-3, abs=1e-4)


def test_what_is_sent(base, bank, serve) -> None:
    server = serve(prefix="mine/")
    _score(server, base, bank, SHOTS[1:2], prefix="mine/")
    ids = list(base.template.encode("say cat", "the cat").input_ids)
    asked = {"path": "/v1/completions", "model": "mine/first", "temperature": 0}
    likelihood = asked | {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 1}
    greedy = {"repetition_penalty": 1.0, "return_token_ids": True, "stop_token_ids": list(base.end_ids)}
    answer = asked | {"prompt": base.template.encode_prompt("say cat"), "max_tokens": 4} | greedy
    assert [one for one in server.completions if one["model"] == "mine/first"] == [likelihood, answer]
    assert server.completions[0] == likelihood | {"model": BASE}


def test_names_at_the_server(base, bank, serve) -> None:
    server = serve(prefix="x-")
    names = {"first": "x-second", "second": "x-first"}
    crossed = _score(server, base, bank, names=names)
    straight = _score(server, base, bank, prefix="x-")
    assert [one.shot_nll for one in crossed] == [one.shot_nll for one in straight][::-1]


def test_a_name_for_an_adapter_that_there_is_not(bank) -> None:
    endpoint = EndpointConfig(url="http://localhost/v1", names={"frist": "x"})
    with pytest.raises(
        ConfigError, match=r"experts\.endpoint\.names: expected names .* got 'frist'; .* first"
    ):
        check_names(bank, endpoint)


def test_an_adapter_that_is_not_served_stops_no_other(base, bank, serve) -> None:
    server = serve()
    del server.adapters["second"]
    said: list[str] = []
    scores = _score(server, base, bank, say=said.append)
    assert [score.name for score in scores] == ["first"]
    folder = bank["second"].folder
    assert f"start vLLM with --lora-modules second={folder}" in scores.failures["second"]
    assert len(said) == 1
    assert f"vllm serve {base.name} --no-enable-prefix-caching --enable-lora --max-lora-rank 8" in said[0]
    assert said[0].endswith(f"--lora-modules first={bank['first'].folder} second={folder}")
    server.adapters.clear()
    with pytest.raises(AdapterError, match=r"at least one adapter.*first: expected it as 'first' at"):
        _score(server, base, bank)


def test_a_damaged_adapter_is_a_failure_although_it_is_served(base, bank, serve) -> None:
    server = serve()
    weights = bank["first"].folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-50])
    scores = _score(server, base, bank)
    assert list(scores.failures) == ["first"]
    assert len(scores) == 1


def test_adapters_that_are_not_applied_are_named(base, bank, serve) -> None:
    said: list[str] = []
    _score(serve(applies=False), base, bank, say=said.append)
    assert len(said) == 1
    named, _, rest = said[0].partition(": ")
    assert sorted(named.split(", ")) == NAMES
    assert rest.startswith(f"the same likelihood as the base '{BASE}' to the last digit")
    said.clear()
    _score(serve(), base, bank, say=said.append)
    assert said == []


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


def test_numbers_that_are_none_are_a_failure_of_that_adapter(base, bank, serve) -> None:
    server = serve()
    for value, message in NO_NUMBERS:
        _changed(server, lambda choice, value=value: _last(choice, value), model="first")
        done: list[int] = []
        scores = _score(server, base, bank, SHOTS[:1], progress=done.append)
        assert [score.name for score in scores] == ["second"]
        assert scores.failures["first"].startswith(f"a: {message}")
        assert sum(done) == len(NAMES)


def test_numbers_that_are_none_for_the_base_too(base, bank, serve) -> None:
    server = serve(knows=("prompt_logprobs",))
    _changed(server, lambda choice: _last(choice, 0.5))
    message = "got none that can be used; with prompt_logprobs: expected log-probabilities of at most 0, got"
    with pytest.raises(SourceError, match=message):
        _score(server, base, bank)


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


def test_other_tokens_than_were_sent(base, bank, serve) -> None:
    server = serve()
    for change, message in OTHER_TOKENS:

        def disturb(choice: dict[str, Any], change: Callable[[list[Any]], Any] = change) -> None:
            if choice["prompt_logprobs"]:
                change(choice["prompt_logprobs"])

        _changed(server, disturb, model="first")
        scores = _score(server, base, bank, SHOTS[:1])
        assert scores.failures["first"].startswith(f"a: {message}")
        assert len(scores) == 1


def test_an_echo_of_other_tokens(base, bank, serve) -> None:
    server = serve(knows=("echo",))

    def shifted(request: dict[str, Any], number: int) -> Reply:
        reply = server.honest(request, number)
        if (
            request.get("echo") and request["model"] == "first"
        ):  # a begin token before ours, nothing behind it
            reply.body["usage"]["prompt_tokens"] += 1
        return reply

    server.reply = shifted
    failure = _score(server, base, bank).failures["first"]
    assert "tokens sent, got" in failure


def test_a_server_without_log_probabilities_of_prompts(base, bank, serve) -> None:
    server = serve(knows=())
    message = (
        rf"expected log-probabilities of a prompt from {server.url}, got none .*with prompt_logprobs: "
        r"expected prompt_logprobs, got none; with echo: .* tokens sent, got 1; serve the adapters with vLLM"
    )
    with pytest.raises(SourceError, match=message):
        _score(server, base, bank)


def test_a_server_that_refuses_what_it_does_not_know(base, bank, serve) -> None:
    server = serve(knows=("echo",))
    own = {"path", "model", "prompt", "temperature", "max_tokens", "echo", "logprobs", "stop"}

    def strict(request: dict[str, Any], number: int) -> Reply:
        strange = sorted({*request} - own)
        return fails(400, f"Unrecognized: {strange}") if strange else server.honest(request, number)

    server.reply = strict
    assert [score.name for score in _score(server, base, bank)] == NAMES
    assert server.completions[-1]["stop"] == ["<|im_end|>"]


def test_text_after_an_end_that_the_server_did_not_stop_at(tiny_lm, base, bank, serve) -> None:
    server = serve(knows=("echo",))
    _changed(server, lambda choice: choice.update(text=f" {choice['text']}<|im_end|> and on \ud83d"))
    local = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    for one, other in zip(_score(server, base, bank), local, strict=True):
        assert one.shot_answer == other.shot_answer


def test_what_is_refused_for_one_adapter_stops_no_other(base, bank, serve) -> None:
    server = serve()
    for status in (400, 404, 422, 500):
        server.requests.clear()
        refusal = fails(status, "not this one")
        server.reply = lambda request, number, refusal=refusal: (
            refusal if request.get("model") == "first" else server.honest(request, 0)
        )
        scores = _score(server, base, bank, concurrency=1)
        assert [score.name for score in scores] == ["second"]
        assert f"got: {status} not this one" in scores.failures["first"]
        assert sum(one["model"] == "first" for one in server.completions) == 1  # nothing more is asked of it


REFUSALS = [
    (
        fails(401, "wrong key"),
        r"expected an API key that .* takes, got: 401 wrong key; set OPENAI_API_KEY, or",
    ),
    (fails(403, "no"), r"with experts\.endpoint\.api_key_env"),
    (fails(429, "slow"), r"used up: 429 slow; lower experts\.endpoint\.requests_per_minute or experts\.e"),
    (fails(503, "busy"), "got: 503 busy; check the endpoint"),
    (Reply(b"<html>\n<p>hello</p></html>", headers={"Content-Type": "text/html"}), "got '<html> <p>hello"),
    (Reply(b"{nonsense"), "expected JSON from"),
    (Reply(b""), "expected JSON from"),
    (Reply(None), "expected a (list of models|text completion) from .*, got 'null'"),
    (Reply([]), "expected a (list of models|text completion) from .*, got"),
    (Reply({}), "expected a (list of models|text completion) from .*, got"),
    (Reply({"data": [1], "choices": [1]}), "expected a (list of models|text completion) from"),
    (Reply({"data": {"id": 1}, "choices": {"a": 1}}), "expected a (list of models|text completion) from"),
]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions"])
def test_an_endpoint_that_refuses_or_says_nonsense(path: str, base, bank, serve) -> None:
    server = serve()
    for refusal, message in REFUSALS:
        server.reply = lambda request, number, refusal=refusal: (
            refusal if request["path"] == path else server.honest(request, number)
        )
        with pytest.raises(SourceError, match=message) as raised:
            _score(server, base, bank)
        assert "\n" not in str(raised.value)


def test_an_endpoint_that_does_not_answer_in_time(base, bank, serve) -> None:
    server = serve()
    go_on = threading.Event()
    server.reply = lambda request, number: Reply({"data": go_on.wait(5)})
    with pytest.raises(SourceError, match=r"in time, got none; raise experts\.endpoint\.timeout_s"):
        _score(server, base, bank, timeout_s=0.1)
    go_on.set()


def test_an_endpoint_that_is_not_there(base, bank, serve) -> None:
    server = serve()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(SourceError, match=r"cannot reach .*Connection refused; check the endpoint"):
            _score(server, base, bank)


@pytest.mark.parametrize("after", [2, 5, 9])
def test_a_server_that_dies_half_way_and_comes_back(after: int, base, bank, serve, tmp_path) -> None:
    server = serve()
    whole = _score(server, base, bank)
    requests = len(server.completions)
    server.requests.clear()
    server.reply = lambda request, number: server.honest(request, 0) if number < after else fails(503)
    path = tmp_path / "scores.jsonl"
    with pytest.raises(SourceError, match="got: 503"):
        _score(server, base, bank, concurrency=1, store=ScoreStore(path))
    assert len(server.completions) == after  # the list of models, and the one that failed
    known = path.read_bytes() if path.exists() else b""
    server.requests.clear()
    server.reply = server.honest
    done: list[int] = []
    resumed = _score(server, base, bank, concurrency=1, store=ScoreStore(path), progress=done.append)
    assert path.read_bytes().startswith(known)
    kept = [json.loads(line)["value"] for line in known.splitlines()]
    spared = sum(len(value.get("nll", "1")) for value in kept)
    assert len(server.completions) == requests - spared
    assert sum(done) == PAIRS
    for one, other in zip(resumed, whole, strict=True):
        assert (one.shot_nll, one.shot_answer) == (other.shot_nll, other.shot_answer)


def test_what_is_known_needs_no_server_and_is_nobody_elses(base, bank, serve, tmp_path) -> None:
    server = serve()
    path = tmp_path / "scores.jsonl"
    known = _score(server, base, bank, store=ScoreStore(path))
    asked = len(server.requests)
    again = _score(server, base, bank, store=ScoreStore(path))
    assert len(server.requests) == asked
    assert [one.shot_nll for one in again] == [one.shot_nll for one in known]
    lines = len(path.read_text().splitlines())
    _score(serve(), base, bank, store=ScoreStore(path))  # at another address
    assert len(path.read_text().splitlines()) == 2 * lines


def test_bad_input_is_refused_before_anything_is_asked(base, bank, serve, monkeypatch) -> None:
    server = serve()
    with pytest.raises(ConfigError, match="got an empty bank"):
        _score(server, base, Bank([]))
    with pytest.raises(ExampleError, match="expected at least one shot"):
        _score(server, base, bank, [])
    with pytest.raises(ExampleError, match="shot endless: expected at most 512 tokens"):
        _score(server, base, bank, [Example("count", "yes " * 600, id="endless")])
    with pytest.raises(ConfigError, match="expected an endpoint such as"):
        _score(server, base, bank, url="localhost:8000")
    with pytest.raises(ConfigError, match=r"put the key into .* name it with experts\.endpoint\.api_key_env"):
        _score(server, base, bank, url="http://me:pass@localhost/v1")
    with pytest.raises(ConfigError, match="in the environment variable NOT_SET"):
        _score(server, base, bank, api_key_env="NOT_SET")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kshot\[endpoint\]'"):
        _score(server, base, bank)
    assert server.requests == []
