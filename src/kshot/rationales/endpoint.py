"""A model behind any OpenAI-compatible endpoint as a writer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kshot.endpoint import CONCURRENCY, RETRIES, TIMEOUT_S, Connection, Pacer, in_threads
from kshot.errors import ConfigError, SourceError
from kshot.rationales.writer import Answer, Sampling, Stop

_THOUGHTS = re.compile(r"^\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_STOPS: Mapping[str, Stop] = {"length": "length", "content_filter": "filter"}
_ROW_PROBLEMS: Mapping[str, Stop] = {  # error codes that tell of one prompt, not of the endpoint
    "content_filter": "filter",
    "content_policy_violation": "filter",
    "context_length_exceeded": "prompt_too_long",
}
_OPTIONAL = frozenset({"temperature", "seed", "max_tokens"})  # models that think refuse some of them


class EndpointWriter:
    """Asks `/chat/completions` of an endpoint.

    Args:
        endpoint: As in `kshot.endpoint.Connection`.
        model: Its name there.
        api_key_env: As in `kshot.endpoint.Connection`.
        concurrency: Requests under way at once.
        requests_per_minute: Retries included; None for no limit.
        timeout_s: To connect, and between two parts of an answer.
        retries: Of one request.

    Raises:
        ConfigError: The URL, the key or a number cannot be used.
        MissingExtraError: The client is not installed.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        api_key_env: str | None = None,
        concurrency: int = CONCURRENCY,
        requests_per_minute: float | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        for name, value, least in (("concurrency", concurrency, 1), ("retries", retries, 0)):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}: raise it")
        if not 0 < timeout_s < float("inf"):
            raise ConfigError(f"timeout_s must be above 0, got {timeout_s}: give seconds")
        if not model.strip():
            raise ConfigError("expected the name of a model at the endpoint, got none")
        self._model = model
        self._concurrency = concurrency
        self._refused: frozenset[str] = frozenset()
        self._connection = Connection(
            endpoint,
            api_key_env=api_key_env,
            pacer=Pacer(requests_per_minute),
            timeout_s=timeout_s,
            retries=retries,
            setting=lambda name: f"--{name.replace('_', '-')}",
        )

    @property
    def identity(self) -> Mapping[str, str]:
        """Model and endpoint."""
        return {"model": self._model, "endpoint": self._connection.url}

    def answers(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """Yield each answer as soon as it is there.

        Raises:
            SourceError: The endpoint cannot be reached, turns the request down, or says what is no answer.
        """
        yield from in_threads(
            lambda index: self._ask(prompts[index], sampling), len(prompts), self._concurrency
        )

    def _ask(self, prompt: str, sampling: Sampling) -> Answer:
        """Ask once; again without a setting that the model turns out not to take."""
        library, create = self._connection.library, self._connection.client.chat.completions.create
        while True:
            refused = self._refused
            try:
                completion = create(**self._request(prompt, sampling, refused))
            except (library.OpenAIError, ValueError) as error:
                code, setting = getattr(error, "code", None), getattr(error, "param", None)
                if problem := _ROW_PROBLEMS.get(str(code)):
                    return Answer("", None, None, problem)
                unsupported = code in ("unsupported_parameter", "unsupported_value")
                if not unsupported or setting not in _OPTIONAL - refused:
                    # without its chain, which holds the request and so the key
                    raise self._connection.failure(error, self._model) from None
                self._refused |= {setting}
            else:
                return self._answer(completion, tuple(sorted(refused - {"max_tokens"})))

    def _request(self, prompt: str, sampling: Sampling, refused: frozenset[str]) -> dict[str, Any]:
        settings: dict[str, Any] = {"temperature": sampling.temperature}
        if sampling.temperature:
            settings["seed"] = sampling.seed
        limit = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        settings[limit] = sampling.max_new_tokens
        kept = {name: value for name, value in settings.items() if name not in refused}
        return {"model": self._model, "messages": [{"role": "user", "content": prompt}], **kept}

    def _answer(self, completion: Any, refused: tuple[str, ...]) -> Answer:
        try:
            choice = completion.choices[0]
            text, stop = choice.message.content or "", choice.finish_reason
        except (AttributeError, TypeError, LookupError):  # the client does not check what it reads
            raise self._no_answer(completion) from None
        if not isinstance(text, str):
            raise self._no_answer(completion)
        sound = text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a surrogate pair
        usage = getattr(completion, "usage", None)
        return Answer(
            text=_THOUGHTS.sub("", sound).strip(),
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
            stop=_STOPS.get(str(stop), "end"),
            refused=refused,
        )

    def _no_answer(self, completion: Any) -> SourceError:
        dump = getattr(completion, "model_dump", None)
        plain = dump(exclude_unset=True, warnings="none") if dump else completion
        return self._connection.nonsense("a chat completion", plain)


def _count(usage: Any, name: str) -> int | None:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) else None
