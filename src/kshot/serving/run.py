"""A server from start to end: the socket, the model, the requests, and a stop that lets them finish."""

import ipaddress
import math
import os
import signal
import socket
from collections.abc import Callable, Sequence

import uvicorn

from kshot.errors import ConfigError, reason_of
from kshot.serving.engine import MAX_BATCH_TOKENS, MAX_ROWS, MAX_WAITING, Engine
from kshot.serving.limits import LOOPBACK, PORT, Limits
from kshot.serving.served_models import find_expert, load_served
from kshot.serving.server import create_app


def serve(
    experts: Sequence[str],
    *,
    host: str = LOOPBACK,
    port: int = PORT,
    base_model: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    limits: Limits | None = None,
    max_rows: int = MAX_ROWS,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_waiting: int = MAX_WAITING,
    say: Callable[[str], None] = print,
) -> None:
    """Serve experts until SIGTERM or Ctrl-C; requests under way are then finished first.

    Args:
        experts: `FOLDER` or `NAME=FOLDER`, of a run or an adapter.
        host: Where to listen.
        port: 0 takes a free one.
        base_model: In place of the one that the experts name.
        dtype: Of the base.
        device: Of the base.
        limits: What is asked of clients.
        max_rows: See `Engine`, as for the two that follow.
        max_batch_tokens: Most tokens of the batch.
        max_waiting: Most requests outside of the batch.
        say: Takes one line where the server is.

    Raises:
        ConfigError: A setting is out of range, or the address is taken.
        KshotError: An expert or the base cannot be loaded.
    """
    limits = limits or Limits()
    sources = [find_expert(one) for one in experts]
    with _bound(host, port) as listener:
        lm, models = load_served(sources, base_model=base_model, dtype=dtype, device=device)
        engine = Engine(lm, max_rows=max_rows, max_batch_tokens=max_batch_tokens, max_waiting=max_waiting)
        local = is_loopback(host)
        hosts = ["localhost", "127.0.0.1", "::1", host] if local and not limits.api_key else None
        config = uvicorn.Config(
            create_app(lm, models, engine, limits, hosts=hosts),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # else whoever is on this machine could pass for any client
            timeout_graceful_shutdown=math.ceil(limits.timeout_s) + 1,  # no answer takes longer
        )
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, lambda *_: None)  # uvicorn sends it again after it has stopped
        place = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        say(f"serving {', '.join(model.name for model in models)} on {place}, with a page to chat on")
        if not local and not limits.api_key:
            say("anyone who reaches this address may use it: name a key with --api-key-env")
        uvicorn.Server(config).run(sockets=[listener])


def read_api_key(variable: str) -> str:
    """Return the key that an environment variable holds.

    Raises:
        ConfigError: It is not set, or the key cannot be sent in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or len(key.split()) > 1:
        raise ConfigError(
            f"expected an API key of plain letters, digits and signs in the environment variable {variable}, "
            f"got {'others' if key else 'none'}: set it"
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """Take the address before the model is loaded, which may take minutes; no one can connect until later."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"expected to listen on {host}, port {port}, got: {reason_of(error)}; choose another address"
        ) from error
    return listener
