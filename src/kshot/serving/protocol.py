"""Requests as OpenAI's API defines them. What would have an effect and has none here is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_TEMPERATURE = 0.0  # OpenAI's is 1; an expert's quality was measured on its likeliest answers
DEFAULT_MAX_TOKENS = (
    256  # as many tokens are set aside in the batch; OpenAI's 16 for completions cuts answers off
)

Text = Annotated[str, Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]  # longer ones make every token slow
Zero = Annotated[float, Field(ge=0, le=0)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # of no use on a connection that others cannot watch


class ResponseFormat(_Strict):
    """Free text is the only one."""

    type: Literal["text"] = "text"


class Extension(_Strict):
    """What kshot adds to OpenAI's API.

    Attributes:
        experts: Name the expert behind each token.
    """

    experts: bool = False


class GenerationRequest(_Strict):
    """What chats and completions have in common.

    Fields typed `Any` change nothing in an answer and are taken for the sake of clients that send them.
    """

    model: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Int64 | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    kshot: Extension = Extension()
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, none or several."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether the stream ends with a count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Strict):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Any = None
    refusal: None = None

    @property
    def turn(self) -> dict[str, str]:
        """As chat templates take it; `developer` is what newer models call `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`: one prompt, as text or token ids."""

    prompt: Text | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
