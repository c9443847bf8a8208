"""Log-probabilities as a server sends them, checked before they are believed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kshot.errors import AdapterError
from kshot.prompts import TokenisedExample

_LEAST = -9999.0  # what vLLM sends for minus infinity, which JSON does not hold
_ROUNDING = 1e-3  # above 0, of a log-probability that was rounded to half precision


def from_prompt_logprobs(choice: Mapping[str, Any], row: TokenisedExample) -> list[float]:
    """Read vLLM's `prompt_logprobs`: for each prompt token but the first `{token id: {"logprob": ...}}`.

    Args:
        choice: A choice of a completion.
        row: What was asked: prompt and target as one prompt.

    Returns:
        The log-probability of each target token, in nats.

    Raises:
        AdapterError: There are none, not as many as tokens were sent, of other tokens, or no such numbers.
    """
    entries = choice.get("prompt_logprobs")
    if not isinstance(entries, list):
        raise AdapterError("expected prompt_logprobs, got none")
    _check_count(len(entries), {len(row)}, row)
    found = []
    for position in range(row.prompt_length, len(row)):
        entry, token = entries[position], row.input_ids[position]
        try:
            found.append(entry[str(token)]["logprob"])
        except (TypeError, KeyError):
            raise AdapterError(
                f"expected the log-probability of token {token} at position {position}, got {_short(entry)}"
            ) from None
    return _checked(found)


def from_echo(
    choice: Mapping[str, Any], usage: Mapping[str, Any] | None, row: TokenisedExample
) -> list[float]:
    """Read `token_logprobs` of an echoed prompt, which may have a generated token behind it.

    Args:
        choice: A choice of a completion.
        usage: The completion's token counts, if it has any: a token that the server put before ours would
            shift all values.
        row: As in `from_prompt_logprobs`.

    Returns:
        As `from_prompt_logprobs`.

    Raises:
        AdapterError: As `from_prompt_logprobs`.
    """
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list):
        raise AdapterError("expected logprobs.token_logprobs of the echoed prompt, got none")
    _check_count(len(values), {len(row), len(row) + 1}, row)
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(counted, int):
        _check_count(counted, {len(row)}, row)
    return _checked(values[row.prompt_length : len(row)])


def _check_count(count: int, expected: set[int], row: TokenisedExample) -> None:
    if count not in expected:
        raise AdapterError(f"expected log-probabilities of the {len(row)} tokens sent, got {count}")


def _checked(values: Sequence[Any]) -> list[float]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise AdapterError(f"expected a log-probability, got {_short(value)}")
        if not _LEAST < value < math.inf:  # NaN is on no side
            raise AdapterError(f"expected finite log-probabilities, got {_short(value)}: it overflows there")
        if value > _ROUNDING:
            raise AdapterError(f"expected log-probabilities of at most 0, got {_short(value)}")
    return [min(float(value), 0.0) for value in values]


def _short(value: Any) -> str:
    return repr(value)[:80]
