"""`kshot serve`: the process from start to stop."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from openai import OpenAI
from typer.testing import CliRunner

from kshot.cli import app
from kshot.errors import ConfigError
from kshot.serving.run import is_loopback, read_api_key, serve

from .calls import count, wait_until
from .conftest import Served

MAIN = [sys.executable, "-c", "from kshot.cli import main; main()", "serve"]


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start the command and yield it with its address."""
    with subprocess.Popen(
        [*MAIN, *arguments, "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment,
    ) as one:  # fmt: skip
        try:
            line = one.stdout.readline()
            found = re.search(r"on (http://\S+?),", line)
            assert found, one.stderr.read()
            yield one, found[1]
        finally:
            one.kill()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_is_under_way(served: Served, stop: signal.Signals) -> None:
    with process(str(served.folders["tokens"])) as (server, url):
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            asked = {
                "model": "tokens", "messages": [{"role": "user", "content": "yes"}], "max_tokens": 150,
                "temperature": 2.0, "seed": 5,
            }  # fmt: skip
            want = client.chat.completions.create(**asked).choices[0].message.content
            whole: list[str] = []
            waiting = threading.Thread(
                target=lambda: whole.append(
                    client.chat.completions.create(**asked).choices[0].message.content
                )
            )
            stream = client.chat.completions.create(**asked, stream=True)
            parts = [next(stream), next(stream)]
            waiting.start()
            wait_until(lambda: count(url, "kshot_running_rows") == 2)
            server.send_signal(stop)
            parts += list(stream)
            waiting.join(120)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == want
        assert whole == [want]
        assert server.wait(120) == 0
        assert server.stderr.read().count("Traceback") == 0


@pytest.mark.slow
def test_it_binds_to_loopback_and_takes_its_key_from_the_environment(served: Served) -> None:
    arguments = [str(served.folders["tokens"]), f"other={served.folders['plain']}", "--api-key-env", "MY_KEY"]
    with process(*arguments, MY_KEY="secret") as (_, url):
        assert url.startswith("http://127.0.0.1:")
        with OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tokens", "other", served.base.name]


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(app, ["serve", "--help"])
    assert "Example: kshot serve runs/arc runs/math" in " ".join(result.output.split())


def test_an_address_that_is_taken(served: Served) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"expected to listen on 127\.0\.0\.1, port"),
    ):
        serve([str(served.folders["tokens"])], port=taken.getsockname()[1], device="cpu")


def test_keys_are_read_with_suspicion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOD", " abc ")
    assert read_api_key("GOOD") == "abc"
    for key, said in {"": "got none", "a b": "got others", "é": "got others"}.items():
        monkeypatch.setenv("BAD", key)
        with pytest.raises(ConfigError, match=said):
            read_api_key("BAD")


def test_loopback_addresses() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))
