"""What goes wrong on the way to the Hub, in words; and patience where the Hub asks for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kshot.errors import KshotError, RunFolderError, SourceError, reason_of

ATTEMPTS = 4  # of a question, where the Hub is busy
LONGEST_WAIT_S = 300.0  # the Hub counts requests in windows of so long
T = TypeVar("T")


class HubUnreachableError(SourceError):
    """The Hub did not answer, or not wholly; the same may work later."""


def patiently(ask: Callable[[], T]) -> T:
    """Ask the Hub, again where it says that it is busy, after the time that it names."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except HfHubHTTPError as error:
            if attempt == ATTEMPTS or not _is_busy(error):
                raise
            named = error.response.headers.get("Retry-After", "")
            wait_s = float(named) if named.isdigit() else 4.0**attempt
            time.sleep(min(wait_s, LONGEST_WAIT_S))
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def explained(reference: str) -> Iterator[None]:
    """Turn what the Hub client raises into errors that say what to do."""
    try:
        yield
    except KshotError:
        raise
    except Exception as error:  # the Hub client's own, its HTTP library's and the standard library's kinds
        raise _explanation(error, reference) from error


def _explanation(error: Exception, reference: str) -> KshotError:
    if isinstance(error, GatedRepoError):
        return SourceError(
            f"{reference}: expected leave to read it, its owner wants an agreement first: accept it on its "
            "page, then log in with 'hf auth login'"
        )
    if isinstance(error, RevisionNotFoundError | RepositoryNotFoundError):
        missing = "revision" if isinstance(error, RevisionNotFoundError) else "repository"
        return SourceError(
            f"{reference}: the Hub has no such {missing}, or it is private: check the name, or log in with "
            "'hf auth login'"
        )
    if isinstance(error, HFValidationError):
        return SourceError(f"{reference}: expected the name of a repository: {reason_of(error)}")
    if _is_of_the_disk(error):
        return RunFolderError(
            f"cannot store {reference}: {reason_of(error)}; free space or choose a folder you can write to"
        )
    if isinstance(error, HfHubHTTPError) and not _is_busy(error):
        return SourceError(f"{reference}: the Hub refused: {reason_of(error)}; check the name and your login")
    hidden = isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception)
    reason = reason_of(error.__cause__ if hidden and error.__cause__ else error)
    return HubUnreachableError(
        f"{reference}: expected a whole answer from the Hub, got: {reason}; check the network and "
        "HF_ENDPOINT, then run the command again"
    )


def _is_busy(error: HfHubHTTPError) -> bool:
    return error.response.status_code == 429 or error.response.status_code >= 500


def _is_of_the_disk(error: Exception) -> bool:
    """Whether the system, and no network, gave a number for it."""
    return (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, ConnectionError | TimeoutError)
    )
