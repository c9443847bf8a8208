"""Reaching a cluster, or saying why not."""

import socket
import sys

import pytest

from kshot.engine import RayEngine, open_engine
from kshot.engine.ray_connection import connect
from kshot.errors import ConfigError, EngineError, MissingExtraError


def test_without_ray_the_extra_is_named_before_anything_is_done(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"the engine ray needs Ray: pip install 'kshot\[ray\]'"):
        RayEngine()


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "", "head:port"])
def test_what_is_no_address_is_refused(address) -> None:
    with pytest.raises(ConfigError, match="expected the address HOST:PORT of a Ray cluster or 'auto'"):
        RayEngine(address)


def test_the_address_of_a_ray_client_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(
        ConfigError, match=r"got that of a Ray client, 'ray://head:10001': .*'ray job submit'"
    ):
        RayEngine("ray://head:10001")


def test_a_number_of_workers_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        RayEngine(num_workers=0)


def test_settings_without_effect_are_refused() -> None:
    with (
        pytest.raises(ConfigError, match="expected no address with the engine local, got 'auto'"),
        open_engine("local", address="auto"),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="expected no workers with the engine local, got 2"),
        open_engine("local", num_workers=2),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="expected an engine of local, ray, got 'dask'"),
        open_engine("dask"),
    ):
        pass


def test_local_needs_no_engine() -> None:
    with open_engine("local") as engine:
        assert engine is None


@pytest.mark.slow
def test_an_address_where_no_cluster_answers_is_given_up_in_time() -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            EngineError, match=rf"a Ray cluster at {address}, got: no answer within 8 s; start"
        ):
            connect(ray, address, timeout_s=8)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_where_no_cluster_is_running_auto_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where Ray notes which cluster is running here
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'kshot[ray]'")
    with pytest.raises(
        EngineError, match="a Ray cluster at auto, got: Could not find any running Ray instance"
    ):
        connect(ray, "auto")
