"""The official OpenAI client: its address, its key, and what its failures mean to a user."""

import json
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kshot.endpoint.pacing import Pacer
from kshot.errors import ConfigError, MissingExtraError, SourceError, reason_of

if TYPE_CHECKING:
    from openai import OpenAI

DEFAULT_KEY = "OPENAI_API_KEY"
CONCURRENCY = 8  # requests under way: hides the network, and stays within the limits of small plans
TIMEOUT_S = 60.0  # an answer takes seconds; a long queue may take longer
RETRIES = 5  # with waits of 0.5 s to 8 s between them: enough for a short outage
_PATHS = ("/chat/completions", "/completions")
_NO_KEY = "none"  # the client wants a key; servers on one's own machine ask for none
_LONGEST_QUOTE = 300  # characters of what an endpoint said: an HTML page does not fit a line


class Connection:
    """A client for one endpoint.

    It tries again after lost connections, timeouts and the statuses 408, 409, 429 and 5xx, with growing waits
    or the wait that the endpoint asks for.

    Args:
        endpoint: Base URL, such as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        api_key_env: Environment variable with the key, which is never printed or stored; by default
            `OPENAI_API_KEY`, and no key where that is not set.
        pacer: When a request, retries included, may start.
        timeout_s: To connect, and between two parts of an answer.
        retries: Of one request.
        setting: How the user calls a setting, for advice: `timeout_s` may be `--timeout-s`.

    Attributes:
        url: Base URL without a slash at its end.
        client: Retries what may pass by itself.
        library: The `openai` module, imported when it is first needed.

    Raises:
        ConfigError: The URL or the key cannot be used.
        MissingExtraError: The client is not installed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        api_key_env: str | None,
        pacer: Pacer,
        timeout_s: float,
        retries: int,
        setting: Callable[[str], str],
    ) -> None:
        self._setting = setting
        self.url = _base_url(endpoint, setting("api_key_env"))
        self._key = _read_key(api_key_env)
        self.library = _openai()
        # before each try, so that retries are paced as well
        hooks = {"request": [lambda _: pacer.wait()]}
        self.client: OpenAI = self.library.OpenAI(
            base_url=self.url,
            api_key=self._key,
            timeout=timeout_s,
            max_retries=retries,
            http_client=self.library.DefaultHttpxClient(event_hooks=hooks, timeout=timeout_s),
        )
        # closes its sockets with the last use; not at exit, where a call may still be under way
        weakref.finalize(self, self.client.close).atexit = False

    def failure(self, error: Exception, model: str) -> SourceError:
        """Say what went wrong, without the key, which some endpoints send back."""
        known, name = self.library, self._setting
        where, said = f"model {model!r} at {self.url}", self.quoted(_said(error))
        if isinstance(error, known.APITimeoutError):
            return SourceError(f"expected an answer of {where} in time, got none; raise {name('timeout_s')}")
        if isinstance(error, known.APIConnectionError):
            cause = self.quoted(reason_of(error.__cause__ or error))
            return SourceError(f"cannot reach {self.url}: {cause}; check the endpoint and the network")
        if isinstance(error, known.AuthenticationError | known.PermissionDeniedError):
            return SourceError(
                f"expected an API key that {self.url} takes, got: {said}; set {DEFAULT_KEY}, or name the "
                f"variable that holds the key with {name('api_key_env')}"
            )
        if isinstance(error, known.NotFoundError):
            return SourceError(f"expected {where}, got: {said}; check the model's name and the URL")
        if isinstance(error, known.RateLimitError):
            return SourceError(
                f"the limits of {where} are used up: {said}; lower {name('requests_per_minute')} or "
                f"{name('concurrency')}, or wait"
            )
        if isinstance(error, ValueError):
            return SourceError(
                f"expected JSON from {self.url}, got: {said}; check that the endpoint is an "
                "OpenAI-compatible one"
            )
        return SourceError(f"expected an answer of {where}, got: {said}; check the endpoint")

    def nonsense(self, expected: str, said: Any) -> SourceError:
        """Say that an endpoint answers with something else.

        Args:
            expected: Such as `a chat completion`.
            said: Text, or what JSON can hold.
        """
        text = said if isinstance(said, str) else json.dumps(said, default=str)
        return SourceError(
            f"expected {expected} from {self.url}, got {self.quoted(text)!r}; "
            "check that the endpoint is an OpenAI-compatible one"
        )

    def quoted(self, text: str) -> str:
        """Return a foreign text as one line of bearable length, without the key."""
        hidden = text if self._key == _NO_KEY else text.replace(self._key, "***")
        return " ".join(hidden.split())[:_LONGEST_QUOTE]


def _said(error: Exception) -> str:
    """Return status and message of an endpoint's error, the first line of any other."""
    status, body = getattr(error, "status_code", None), getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else body
    return f"{status} {message}" if status and isinstance(message, str) else reason_of(error)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("an endpoint needs openai: pip install 'kshot[endpoint]'") from error
    return openai


def _base_url(endpoint: str, key_setting: str) -> str:
    try:
        parts = urlsplit(endpoint.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            "expected an endpoint such as https://api.openai.com/v1 or http://localhost:8000/v1, "
            f"got {endpoint!r}"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "expected an endpoint without user name, password, '?' or '#': put the key into an environment "
            f"variable and name it with {key_setting}"
        )
    url = endpoint.strip().rstrip("/")
    for path in _PATHS:
        url = url.removesuffix(path)
    return url


def _read_key(variable: str | None) -> str:
    name = variable or DEFAULT_KEY
    key = os.environ.get(name, "").strip()
    if not key and variable:
        raise ConfigError(f"expected an API key in the environment variable {name}, which is not set")
    if not (key.isascii() and key.isprintable() and len(key.split()) <= 1):
        raise ConfigError(
            f"expected an API key of plain letters, digits and signs in {name}, got others: set it again"
        )
    return key or _NO_KEY
