"""Answers in the form of OpenAI's API, whole and in chunks."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from kshot.serving.generation import AnswerToken, FinishReason, Piece, TokenLogprob

Json = dict[str, Any]


class AnswerForm(Protocol):
    """What differs between chats and completions.

    Attributes:
        id_prefix: Of an answer's id.
        whole_name: `object` of a whole answer.
        chunk_name: `object` of a chunk.
    """

    id_prefix: str
    whole_name: str
    chunk_name: str

    def choice(self, text: str, tokens: Sequence[AnswerToken], reason: FinishReason | None) -> Json:
        """Return the one choice of a whole answer."""

    def chunk_choice(self, text: str, tokens: Sequence[AnswerToken], reason: FinishReason | None) -> Json:
        """Return the one choice of a chunk."""

    def opening(self) -> Json | None:
        """Return the choice of a chunk before the first, if there is one."""


class ChatForm:
    """The form of `/v1/chat/completions`."""

    id_prefix = "chatcmpl-"
    whole_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def choice(self, text: str, tokens: Sequence[AnswerToken], reason: FinishReason | None) -> Json:
        """Return the message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return _choice({"message": message}, _chat_logprobs(tokens), reason)

    def chunk_choice(self, text: str, tokens: Sequence[AnswerToken], reason: FinishReason | None) -> Json:
        """Return what is added to the message."""
        return _choice({"delta": {"content": text} if text else {}}, _chat_logprobs(tokens), reason)

    def opening(self) -> Json:
        """Return who speaks."""
        return _choice({"delta": {"role": "assistant", "content": ""}}, None, None)


class CompletionForm:
    """The form of `/v1/completions`."""

    id_prefix = "cmpl-"
    whole_name = chunk_name = "text_completion"

    def choice(self, text: str, tokens: Sequence[AnswerToken], reason: FinishReason | None) -> Json:
        """Return the text."""
        return _choice({"text": text}, _completion_logprobs(tokens), reason)

    def chunk_choice(self, text: str, tokens: Sequence[AnswerToken], reason: FinishReason | None) -> Json:
        """Return what is added to the text."""
        return self.choice(text, tokens, reason)

    def opening(self) -> None:
        """Begin with the text."""


class AnswerWriter:
    """Writes one answer.

    Args:
        form: Of the route.
        model: The name that was asked for.
        prompt_tokens: Tokens of the prompt.
        experts: Name the expert behind each token.
        includes_usage: End the stream with a count of tokens.
    """

    def __init__(
        self, form: AnswerForm, model: str, prompt_tokens: int, *, experts: bool, includes_usage: bool
    ) -> None:
        self._form = form
        self._prompt_tokens = prompt_tokens
        self._experts = experts
        self._includes_usage = includes_usage
        self._head: Json = {
            "id": form.id_prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, pieces: Sequence[Piece]) -> Json:
        """Return the body of a response."""
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        choice = self._form.choice(text, tokens, pieces[-1].finish_reason)
        head = self._head | {"object": self._form.whole_name, "choices": [choice]}
        return head | {"usage": self._usage(pieces[-1])} | self._extension(tokens)

    def opening(self) -> Iterator[Json]:
        """Yield what comes before the first piece."""
        choice = self._form.opening()
        if choice is not None:
            yield self._chunk([choice])

    def chunks(self, piece: Piece) -> Iterator[Json]:
        """Yield the chunks of a piece; after the last one the count of tokens, if it was asked for."""
        choice = self._form.chunk_choice(piece.text, piece.tokens, piece.finish_reason)
        yield self._chunk([choice]) | self._extension(piece.tokens)
        if piece.finish_reason and self._includes_usage:
            yield self._chunk([]) | {"usage": self._usage(piece)}

    def _chunk(self, choices: list[Json]) -> Json:
        no_usage_yet = {"usage": None} if self._includes_usage else {}
        return self._head | {"object": self._form.chunk_name, "choices": choices} | no_usage_yet

    def _usage(self, last: Piece) -> Json:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": last.num_tokens,
            "total_tokens": self._prompt_tokens + last.num_tokens,
        }

    def _extension(self, tokens: Sequence[AnswerToken]) -> Json:
        if not self._experts:
            return {}
        uses = [
            {
                "token": token.text,
                "expert": token.use and token.use.expert,
                "weight": token.use and round(token.use.weight, 4),
                "above_mean": token.use and round(token.use.above_mean, 4),
            }
            for token in tokens
        ]
        return {"kshot": {"experts": uses}}


def _choice(content: Json, logprobs: Json | None, reason: FinishReason | None) -> Json:
    return {"index": 0, **content, "logprobs": logprobs, "finish_reason": reason}


def _chat_logprobs(tokens: Sequence[AnswerToken]) -> Json | None:
    content = [
        {**_named(token.chosen), "top_logprobs": [_named(one) for one in token.likeliest]}
        for token in tokens
        if token.chosen
    ]
    return {"content": content, "refusal": None} if content else None


def _named(one: TokenLogprob) -> Json:
    whole = "\ufffd" not in one.text  # else it is a part of a character, whose bytes are not told
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode()) if whole else None}


def _completion_logprobs(tokens: Sequence[AnswerToken]) -> Json | None:
    known = [(token, token.chosen) for token in tokens if token.chosen]
    if not known:
        return None
    tops = [
        {one.text: one.logprob for one in [*token.likeliest, chosen]}
        for token, chosen in known
        if token.likeliest
    ]
    return {
        "tokens": [chosen.text for _, chosen in known],
        "token_logprobs": [chosen.logprob for _, chosen in known],
        "top_logprobs": tops or None,
        "text_offset": [token.start for token, _ in known],
    }
