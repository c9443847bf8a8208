"""What keeps a server healthy: keys, limits, broken requests, clients that leave, metrics, its page."""

import base64
import hashlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import openai
import pytest
from openai import OpenAI

from kshot.serving.engine import Cancel, Engine
from kshot.serving.gate import ClientRates
from kshot.serving.generation import Deliver, Generation, GenerationFailedError, Piece
from kshot.serving.limits import Limits
from kshot.serving.served_models import ServedModel

from .calls import call, count, wait_until
from .conftest import NEW_TOKENS, Served, serving

CHAT = "/v1/chat/completions"
ASKED = {"model": "tokens", "messages": [{"role": "user", "content": "yes"}], "max_tokens": NEW_TOKENS}
LONG = ASKED | {"max_tokens": 400, "temperature": 2.0, "seed": 1}


def is_healthy(url: str, **headers: str) -> bool:
    answered = call(url, CHAT, ASKED, **headers).status == 200
    return answered and call(url, "/health").status == call(url, "/ready").status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": 1e999}',
        b'{"model": NaN}',
    ],
)
def test_malformed_json(url: str, body: bytes) -> None:
    reply = call(url, CHAT, body)
    assert reply.status == 400
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert is_healthy(url)


def test_other_kinds_of_content_are_refused(url: str) -> None:
    reply = call(url, CHAT, ASKED, Content_Type="text/plain")
    assert reply.status == 415
    assert reply.error["message"] == "expected Content-Type application/json, got text/plain"


def test_unknown_paths_and_methods(url: str) -> None:
    assert call(url, "/v1/embeddings", {}).status == 404
    assert call(url, CHAT).status == 405
    assert call(url, "/docs").status == 404
    assert "ChatRequest" in call(url, "/openapi.json").text


def test_other_hosts_are_refused(url: str) -> None:
    assert call(url, "/health", Host="127.0.0.1:1").status == 200
    assert call(url, "/health", Host="evil.example").status == 400


def test_no_other_origin_may_read(url: str) -> None:
    reply = call(url, "/v1/models", Origin="https://evil.example")
    assert "access-control-allow-origin" not in reply.headers


def test_keys(served: Served) -> None:
    with serving(served, Limits(api_key="right")) as url:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
            for path, body in (
                ("/v1/models", None),
                (CHAT, ASKED),
                ("/metrics", None),
                ("/openapi.json", None),
            ):
                reply = call(url, path, body, **given)
                assert reply.status == 401
                assert reply.error["code"] == "invalid_api_key"
                assert "right" not in reply.text
        client = OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert call(url, "/").status == 200
        assert is_healthy(url, Authorization="Bearer right")


def test_large_bodies(served: Served) -> None:
    with serving(served, Limits(max_body_bytes=1000)) as url:
        body = ASKED | {"user": "x" * 2000}
        reply = call(url, CHAT, body)
        assert reply.status == 413
        assert reply.error["message"].startswith("expected a body of at most 1000 bytes, got more")
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        chunks = iter([json.dumps(body).encode()])
        connection.request("POST", CHAT, chunks, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert is_healthy(url)


def test_slow_bodies(served: Served) -> None:
    with serving(served, Limits(body_timeout_s=0.2)) as url:
        host, port = urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n{"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert call(url, "/health").status == 200


def test_a_model_that_fails(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    broken = replace(served, models=[*served.models, ServedModel("broken", "no-such-adapter")])
    with serving(broken) as url:
        reply = call(url, CHAT, ASKED | {"model": "broken"})
        assert (reply.status, reply.error["type"]) == (500, "server_error")
        assert "no-such-adapter" not in reply.text
        assert "no-such-adapter" in caplog.text
        assert is_healthy(url)


def test_a_server_whose_engine_has_ended(served: Served) -> None:
    engine = Engine(served.lm)
    with serving(served, engine=engine) as url:
        engine.close()
        assert call(url, "/health").status == call(url, "/ready").status == 503
        assert call(url, CHAT, ASKED).status == 429


def test_rates(served: Served) -> None:
    with serving(served, Limits(requests_per_minute=3)) as url:
        replies = [call(url, "/v1/models") for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert replies[-1].error["code"] == "rate_limit_exceeded"
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 21
        assert call(url, "/health").status == call(url, "/metrics").status == 200


def test_a_bucket_fills_up_steadily() -> None:
    now = [0.0]
    rates = ClientRates(2, lambda: now[0])
    assert [rates.wait_s("a") for _ in range(3)] == [0, 0, pytest.approx(30)]
    assert rates.wait_s("b") == 0
    now[0] = 29
    assert rates.wait_s("a") == pytest.approx(1)
    now[0] = 30.5
    assert [rates.wait_s("a"), rates.wait_s("a")] == [0, pytest.approx(29.5)]
    now[0] = 1000
    assert [rates.wait_s("a") > 0 for _ in range(3)] == [False, False, True]


def test_a_full_queue(served: Served) -> None:
    with (
        serving(served, max_rows=1, max_waiting=1) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        streams = []
        for gauge in ("kshot_running_rows", "kshot_waiting_requests"):
            streams.append(client.chat.completions.create(**LONG, stream=True))
            wait_until(lambda: count(url, gauge) == 1)  # noqa: B023 - called at once
        reply = call(url, CHAT, ASKED)
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        assert reply.headers["retry-after"] == "1"
        assert call(url, "/ready").status == 503
        for stream in streams:
            stream.close()
        wait_until(lambda: call(url, "/ready").status == 200)
        assert is_healthy(url)


def test_deadlines(served: Served) -> None:
    with serving(served, Limits(timeout_s=0.05)) as url:
        reply = call(url, CHAT, LONG)
        assert (reply.status, reply.error["type"]) == (504, "timeout_error")
        events = call(url, CHAT, LONG | {"stream": True}).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "timeout_error"
        wait_until(lambda: count(url, "kshot_running_rows") == 0)
        assert call(url, "/health").status == 200


class Watched(Engine):
    """An engine that remembers how its answers ended."""

    def submit(self, generation: Generation, deliver: Deliver) -> Cancel:
        def deliver_and_note(piece: Piece | GenerationFailedError) -> None:
            if isinstance(piece, GenerationFailedError) or piece.finish_reason:
                self.ended.append(piece)
            deliver(piece)

        return super().submit(generation, deliver_and_note)

    ended: list[Piece | GenerationFailedError]


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_take_their_rows_along(served: Served, stream: bool) -> None:
    engine = Watched(served.lm)
    engine.ended = []
    body = json.dumps(LONG | {"stream": stream}).encode()
    with serving(served, engine=engine) as url:
        host, port = urlsplit(url).netloc.split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" % CHAT.encode()
                + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            wait_until(lambda: engine.num_running == 1)
        wait_until(lambda: engine.num_running == 0)
        assert not engine.ended  # it was given up, far from its 400 tokens
        assert is_healthy(url)
        assert len(engine.ended) == 1


def test_half_a_request(url: str) -> None:
    host, port = urlsplit(url).netloc.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
    assert is_healthy(url)


def test_metrics(url: str, served: Served) -> None:
    def counts() -> list[float]:
        return [
            count(url, 'kshot_requests_total{path="/v1/chat/completions",status="200"}'),
            count(url, 'kshot_requests_total{path="/v1/chat/completions",status="404"}'),
            count(url, 'kshot_tokens_total{kind="prompt",model="tokens"}'),
            count(url, 'kshot_tokens_total{kind="completion",model="tokens"}'),
            count(url, 'kshot_answer_seconds_count{model="tokens"}'),
            count(url, 'kshot_first_piece_seconds_count{model="tokens"}'),
        ]

    before = counts()
    usage = json.loads(call(url, CHAT, ASKED).text)["usage"]
    call(url, CHAT, ASKED | {"model": "nothing"})
    added = [after - start for after, start in zip(counts(), before, strict=True)]
    assert added == [1, 1, usage["prompt_tokens"], usage["completion_tokens"], 1, 1]
    assert "nothing" not in call(url, "/metrics").text


def test_the_page_holds_all_it_needs(url: str) -> None:
    page = call(url, "/")
    policy = page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for element in ("script", "style"):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert not re.search(r"https?://|\bstyle=|\bon\w+=|innerHTML", page.text)
    assert "color-scheme: light dark" in page.text


@pytest.fixture(autouse=True)
def idle_at_the_end(url: str) -> Iterator[None]:
    yield
    wait_until(lambda: count(url, "kshot_running_rows") == 0)
