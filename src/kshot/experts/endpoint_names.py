"""What a server calls each adapter, and the command that lets vLLM serve a bank."""

import shlex
from collections.abc import Sequence
from difflib import get_close_matches

from kshot.bank import Adapter, Bank
from kshot.config import EndpointConfig
from kshot.errors import ConfigError
from kshot.experts.endpoint_base import ServedBase
from kshot.model_source import WHEEL_SCHEME

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes for --max-lora-rank


def served_names(bank: Bank, settings: EndpointConfig) -> dict[str, str]:
    """Return the served name of each adapter."""
    return {name: settings.names.get(name, settings.prefix + name) for name in bank.names}


def check_names(bank: Bank, settings: EndpointConfig) -> None:
    """Refuse a name for an adapter that there is not.

    Raises:
        ConfigError: The bank has no such adapter.
    """
    strange = [name for name in settings.names if name not in bank.names]
    if strange:
        near = get_close_matches(strange[0], bank.names, n=5) or bank.names[:5]
        raise ConfigError(
            f"experts.endpoint.names: expected names of adapters, got {strange[0]!r}; "
            f"there are {', '.join(near)}"
        )


def vllm_command(base: ServedBase, adapters: Sequence[Adapter], served: dict[str, str]) -> str:
    """Return a shell command that serves adapters by name.

    Without the prefix cache, as vLLM's prompt log-probabilities may depend on it (vllm issue 42019).
    """
    model = str(base.folder) if base.name.startswith(WHEEL_SCHEME) else base.name
    name, _, revision = model.partition("@")
    largest = max(adapter.entry.r for adapter in adapters)
    rank = next((one for one in _VLLM_RANKS if one >= largest), largest)
    words = ["vllm", "serve", name, *(["--revision", revision] if revision else [])]
    words += ["--no-enable-prefix-caching", "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules"]
    words += [lora_module(adapter, served[adapter.name]) for adapter in adapters]
    return shlex.join(words)


def lora_module(adapter: Adapter, served: str) -> str:
    """Return an adapter as `--lora-modules` names it."""
    return f"{served}={adapter.folder.resolve()}"
