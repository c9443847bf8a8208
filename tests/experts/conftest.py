"""A bank of two adapters, a server that serves it, and scoring at that server.

Tests that need other adapters have a `bank` of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kshot.bank import Bank
from kshot.config import EndpointConfig
from kshot.examples import Example
from kshot.experts import Scores, ServedBase, score_at_endpoint

from .banks import bank_of
from .completions_server import ModelServer
from .shots import SHOTS


@pytest.fixture
def bank(lora_folder: Callable[..., Path]) -> Bank:
    return bank_of(lora_folder("first", seed=1), lora_folder("second", seed=2, r=2))


@pytest.fixture
def base(tiny_model_folder: Path) -> ServedBase:
    return ServedBase.load(str(tiny_model_folder))


@pytest.fixture
def serve(
    tiny_model_folder: Path, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ModelServer]]:
    """Starts a server of the bank, each name behind a prefix; settings are those of `ModelServer`."""
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


@pytest.fixture
def score_at(base: ServedBase, bank: Bank) -> Callable[..., Scores]:
    """Scores the bank at a server; settings are those of `EndpointConfig` and of `score_at_endpoint`."""

    def score(
        server: ModelServer, shots: Sequence[Example] = SHOTS, *, bank: Bank = bank, **settings: Any
    ) -> Scores:
        given = {key: settings.pop(key) for key in list(settings) if key in EndpointConfig.model_fields}
        endpoint = EndpointConfig(**{"url": server.url, "timeout_s": 5, "concurrency": 2} | given)
        return score_at_endpoint(
            base, bank, shots, endpoint, **{"max_new_tokens": 4, "retries": 0} | settings
        )

    return score
