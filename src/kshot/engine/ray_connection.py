"""A connection to Ray: one that is there, a cluster's, or a Ray of this process alone."""

import logging
import os
import subprocess
import sys
from typing import Any

from kshot.errors import ConfigError, EngineError, MissingExtraError, reason_of

CONNECT_TIMEOUT_S = 60.0  # importing Ray and connecting take 5 s; 20 s on a machine that is fully loaded
_CLIENT_SCHEME = "ray://"
_SILENT = {"log_to_driver": False, "logging_level": logging.ERROR}
_TRY = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except Exception as error:
    reason = str(error.__cause__ or error).strip()  # Ray's own says no more than that it failed
    sys.exit(reason.splitlines()[-1] if "Traceback" in reason else " ".join(reason.split()))
"""


def import_ray() -> Any:
    """Return Ray.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Read when Ray is imported. Of workers that are lost it would write to standard output, where results go.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("the engine ray needs Ray: pip install 'kshot[ray]'") from error
    return ray


def check_address(address: str | None) -> None:
    """Refuse what is no address of a cluster.

    Raises:
        ConfigError: As said.
    """
    if address is None:
        return
    if address.startswith(_CLIENT_SCHEME):
        raise ConfigError(
            "expected the address HOST:PORT of a Ray cluster or 'auto', got that of a Ray client, "
            f"{address!r}: run kshot on a machine of the cluster, or send it there with 'ray job submit'"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise ConfigError(f"expected the address HOST:PORT of a Ray cluster or 'auto', got {address!r}")


def connect(ray: Any, address: str | None, *, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Connect this process to a cluster, or start a Ray on this machine that ends with it.

    Ray prints nothing here, shows no dashboard and sends no usage statistics.

    Args:
        ray: The module.
        address: `HOST:PORT` or `auto`; None: that of `RAY_ADDRESS`, which a Ray job has, or a Ray of our own.
        timeout_s: To find out whether a cluster answers.

    Raises:
        EngineError: It does not answer, is none, or has another version of Ray or Python.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, **_SILENT)
        return
    _try_out(address, timeout_s)
    try:
        ray.init(address=address, **_SILENT)
    except Exception as error:
        raise _no_cluster(address, reason_of(error)) from error


def _try_out(address: str, timeout_s: float) -> None:
    """Connect from another process: where nothing answers, Ray itself keeps trying for minutes."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY, address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _no_cluster(address, f"no answer within {timeout_s:g} s") from error
    if tried.returncode:
        raise _no_cluster(address, (tried.stderr.strip().splitlines() or ["Ray ended without a word"])[-1])


def _no_cluster(address: str, reason: str) -> EngineError:
    return EngineError(
        f"expected a Ray cluster at {address}, got: {reason}; start one with 'ray start --head', and run "
        "kshot on one of its machines with the Ray and Python of the others"
    )
