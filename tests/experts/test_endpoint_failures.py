"""Servers and adapters that fail in every way: what stops all, and what stops one adapter alone."""

import json
import socket
import threading

import pytest

from kshot.bank.adapter import WEIGHTS
from kshot.errors import AdapterError, SourceError
from kshot.experts import ScoreStore

from ..endpoint.server import Reply, fails
from .shots import SHOTS


def test_an_adapter_that_is_not_served_stops_no_other(base, bank, score_at, serve) -> None:
    server = serve()
    del server.adapters["second"]
    said: list[str] = []
    scores = score_at(server, say=said.append)
    assert [score.name for score in scores] == ["first"]
    folder = bank["second"].folder
    assert f"start vLLM with --lora-modules second={folder}" in scores.failures["second"]
    assert len(said) == 1
    assert f"vllm serve {base.name} --no-enable-prefix-caching --enable-lora --max-lora-rank 8" in said[0]
    assert said[0].endswith(f"--lora-modules first={bank['first'].folder} second={folder}")
    server.adapters.clear()
    with pytest.raises(AdapterError, match=r"at least one adapter.*first: expected it as 'first' at"):
        score_at(server)


def test_a_damaged_adapter_is_a_failure_although_it_is_served(bank, score_at, serve) -> None:
    server = serve()
    weights = bank["first"].folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-50])
    scores = score_at(server)
    assert list(scores.failures) == ["first"]
    assert len(scores) == 1


def test_what_is_refused_for_one_adapter_stops_no_other(score_at, serve) -> None:
    server = serve()
    for status in (400, 404, 422, 500):
        server.requests.clear()
        refusal = fails(status, "not this one")
        server.reply = lambda request, number, refusal=refusal: (
            refusal if request.get("model") == "first" else server.honest(request, 0)
        )
        scores = score_at(server, concurrency=1)
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
def test_an_endpoint_that_refuses_or_says_nonsense(path: str, score_at, serve) -> None:
    server = serve()
    for refusal, message in REFUSALS:
        server.reply = lambda request, number, refusal=refusal: (
            refusal if request["path"] == path else server.honest(request, number)
        )
        with pytest.raises(SourceError, match=message) as raised:
            score_at(server)
        assert "\n" not in str(raised.value)


def test_an_endpoint_that_does_not_answer_in_time(score_at, serve) -> None:
    server = serve()
    go_on = threading.Event()
    server.reply = lambda request, number: Reply({"data": go_on.wait(5)})
    with pytest.raises(SourceError, match=r"in time, got none; raise experts\.endpoint\.timeout_s"):
        score_at(server, timeout_s=0.1)
    go_on.set()


def test_an_endpoint_that_is_not_there(score_at, serve) -> None:
    server = serve()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(SourceError, match=r"cannot reach .*Connection refused; check the endpoint"):
            score_at(server)


@pytest.mark.parametrize("after", [2, 5, 9])
def test_a_server_that_dies_half_way_and_comes_back(bank, after: int, score_at, serve, tmp_path) -> None:
    server = serve()
    whole = score_at(server)
    requests = len(server.completions)
    server.requests.clear()
    server.reply = lambda request, number: server.honest(request, 0) if number < after else fails(503)
    path = tmp_path / "scores.jsonl"
    with pytest.raises(SourceError, match="got: 503"):
        score_at(server, concurrency=1, store=ScoreStore(path))
    assert len(server.completions) == after  # the list of models, and the one that failed
    known = path.read_bytes() if path.exists() else b""
    server.requests.clear()
    server.reply = server.honest
    done: list[int] = []
    resumed = score_at(server, concurrency=1, store=ScoreStore(path), progress=done.append)
    assert path.read_bytes().startswith(known)
    kept = [json.loads(line)["value"] for line in known.splitlines()]
    spared = sum(len(value.get("nll", "1")) for value in kept)
    assert len(server.completions) == requests - spared
    assert sum(done) == len(bank) * len(SHOTS)
    for one, other in zip(resumed, whole, strict=True):
        assert (one.shot_nll, one.shot_answer) == (other.shot_nll, other.shot_answer)
