"""What may join a bank: how large, and under which licences."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kshot.errors import AdapterError, ConfigError

MAX_BYTES = 1_000_000_000  # a LoRA of rank 64 on every linear layer of a 7B model, in float32, is 640 MB
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an adapter may be.

    Attributes:
        max_bytes: Largest size of its files together.
        licences: Those allowed, in any case of letters; None for all, known or not.
    """

    max_bytes: int = MAX_BYTES
    licences: tuple[str, ...] | None = None

    def check_size(self, what: str, num_bytes: int) -> None:
        """Refuse what is too large.

        Raises:
            AdapterError: As said.
        """
        if num_bytes > self.max_bytes:
            raise AdapterError(
                f"{what}: expected at most {self.max_bytes / 1e6:,.1f} MB, got {num_bytes / 1e6:,.1f} MB: "
                "raise --max-size, or leave it out"
            )

    def check_licence(self, what: str, licence: str) -> None:
        """Refuse what has another licence.

        Raises:
            AdapterError: As said.
        """
        if self.licences is not None and licence.casefold() not in {one.casefold() for one in self.licences}:
            raise AdapterError(
                f"{what}: expected the licence {' or '.join(self.licences)}, got {licence}: allow it with "
                "--licence, or leave it out"
            )


def read_size(text: str) -> int:
    """Read a size such as `200MB` (10^6 bytes) or `1.5 GiB` (2^30 bytes).

    Raises:
        ConfigError: It is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise ConfigError(f"expected a size such as 200MB or 1.5GB, got {text!r}")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def listed(value: object) -> str | None:
    """Return a field of a model card as text: a word, several joined, or None."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, Iterable):
        return ", ".join(one for one in value if isinstance(one, str)) or None
    return None
