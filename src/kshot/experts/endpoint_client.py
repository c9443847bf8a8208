"""Likelihoods and greedy answers from `/completions` of a server, token ids in and numbers out.

Prompts are sent as token ids, so that a server scores the very tokens that a local model would. Two ways to
the log-probabilities of a prompt are known: vLLM's `prompt_logprobs`, and `echo` with `logprobs`, the older
way, in which other servers and lm-eval's `local-completions` speak. Which of them a server knows is found
out once, with `probe`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from kshot.config import EndpointConfig
from kshot.endpoint import RETRIES, Connection, Pacer
from kshot.errors import AdapterError, SourceError
from kshot.experts.endpoint_base import ServedBase
from kshot.experts.endpoint_values import from_echo, from_prompt_logprobs
from kshot.prompts import TokenisedExample

Way = Literal["prompt_logprobs", "echo"]
_COMPLETION = "a text completion"
# A server's own settings for a model, such as a penalty, would otherwise hold; and it would not tell the ids.
_VLLM_GREEDY = {"repetition_penalty": 1.0, "return_token_ids": True}
_MOST_STOPS = 4  # strings that OpenAI's protocol takes
# Of one model or request: any other failure is the server's, and ends the whole.
_OF_ONE_MODEL = frozenset({400, 404, 422, 500})


class CompletionsClient:
    """Asks a server about models that it serves.

    Args:
        settings: Where it is, and how hard it may be asked.
        base: Whose tokens are sent.
        retries: Of one request.

    Attributes:
        url: Of the server.

    Raises:
        ConfigError: The URL, the key or a number cannot be used.
        MissingExtraError: The client is not installed.
    """

    def __init__(self, settings: EndpointConfig, base: ServedBase, *, retries: int = RETRIES) -> None:
        self._base = base
        self._way: Way = "prompt_logprobs"
        self._connection = Connection(
            settings.url,
            api_key_env=settings.api_key_env,
            pacer=Pacer(settings.requests_per_minute),
            timeout_s=settings.timeout_s,
            retries=retries,
            setting=lambda name: f"experts.endpoint.{name}",
        )
        self.url = self._connection.url

    def models(self) -> dict[str, str | None]:
        """Return what is served: names, and for an adapter the name of its base where the server says it.

        Raises:
            SourceError: The server cannot be reached, refuses, or does not list its models.
        """
        client = self._connection.client
        listed = self._call("/models", lambda: client.get("/models", cast_to=object))
        try:
            return {str(one["id"]): one.get("parent") for one in listed["data"]}
        except (TypeError, KeyError, AttributeError):
            raise self._connection.nonsense("a list of models", listed) from None

    def probe(self, model: str, row: TokenisedExample) -> list[float]:
        """Find out how the server gives the log-probabilities of a prompt.

        Returns:
            As `target_logprobs`.

        Raises:
            SourceError: It does not give them, cannot be reached, or refuses.
        """
        reasons = []
        ways: tuple[Way, ...] = ("prompt_logprobs", "echo")
        for way in ways:
            self._way = way
            try:
                return self.target_logprobs(model, row)
            except AdapterError as error:
                reasons.append(f"with {way}: {error}")
        raise SourceError(
            f"expected log-probabilities of a prompt from {self.url}, got none that can be used; "
            f"{'; '.join(reasons)}; serve the adapters with vLLM"
        )

    def target_logprobs(self, model: str, row: TokenisedExample) -> list[float]:
        """Return the log-probability of each target token, in nats.

        Raises:
            AdapterError: The server cannot answer for this model, or its numbers are none.
            SourceError: It cannot be reached, refuses, or its answer is no completion.
        """
        ask = {"prompt_logprobs": 1} if self._way == "prompt_logprobs" else {"echo": True, "logprobs": 1}
        completion = self._complete(model, row.input_ids, max_tokens=1, **ask)
        choice = self._choice(completion)
        if self._way == "prompt_logprobs":
            return from_prompt_logprobs(choice, row)
        return from_echo(choice, completion.get("usage"), row)

    def answer(self, model: str, prompt_ids: Sequence[int], max_new_tokens: int) -> str:
        """Return the greedy answer to a prompt, ended where a local model's would end.

        Raises:
            AdapterError: As `target_logprobs`.
            SourceError: As `target_logprobs`.
        """
        tokenizer = self._base.template.tokenizer
        if self._way == "prompt_logprobs":
            ask: dict[str, Any] = {**_VLLM_GREEDY, "stop_token_ids": list(self._base.end_ids)}
        else:
            tokens = (tokenizer.decode([id_]) for id_ in self._base.end_ids)
            ends = dict.fromkeys([self._base.template.end_of_turn, *tokens])
            ask = {"stop": [end for end in ends if end][:_MOST_STOPS]}
        completion = self._complete(model, prompt_ids, max_tokens=max_new_tokens, **ask)
        choice = self._choice(completion)
        text, ids = choice.get("text"), choice.get("token_ids")
        if isinstance(ids, list) and all(isinstance(id_, int) and 0 <= id_ < len(tokenizer) for id_ in ids):
            end = next((at for at, id_ in enumerate(ids) if id_ in self._base.end_ids), len(ids))
            text = tokenizer.decode(ids[:end], skip_special_tokens=True)
        if not isinstance(text, str):
            raise self._connection.nonsense(_COMPLETION, completion)
        sound = text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a surrogate pair
        return self._base.template.until_end(sound)

    def _complete(self, model: str, prompt_ids: Sequence[int], **settings: Any) -> dict[str, Any]:
        body = {"model": model, "prompt": list(prompt_ids), "temperature": 0, **settings}
        client = self._connection.client
        completion = self._call(
            model, lambda: client.post("/completions", cast_to=object, body=body), one_model=True
        )
        if not isinstance(completion, dict):
            raise self._connection.nonsense(_COMPLETION, completion)
        return completion

    def _choice(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        try:
            choice = completion["choices"][0]
        except (TypeError, LookupError):
            choice = None
        if not isinstance(choice, dict):
            raise self._connection.nonsense(_COMPLETION, completion)
        return choice

    def _call(self, model: str, request: Callable[[], Any], *, one_model: bool = False) -> Any:
        try:
            return request()
        except (self._connection.library.OpenAIError, ValueError) as error:
            failure = self._connection.failure(error, model)
            if one_model and getattr(error, "status_code", None) in _OF_ONE_MODEL:
                raise AdapterError(str(failure)) from None
            # without its chain, which holds the request and so the key
            raise failure from None
