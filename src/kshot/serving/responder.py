"""From a request to a response: which expert, which tokens, how long; then the answer, whole or streamed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.serving.answers import AnswerForm, AnswerWriter, ChatForm, CompletionForm, Json
from kshot.serving.api_errors import ApiError
from kshot.serving.engine import Engine
from kshot.serving.generation import Generation, Piece
from kshot.serving.metrics import AnswerMetrics, Metrics
from kshot.serving.pending import PendingAnswer, unless_gone
from kshot.serving.protocol import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from kshot.serving.served_models import ServedModel


class Responder:
    """Answers chats and completions.

    Args:
        lm: Its tokenizer is used by one thread of this object alone.
        models: What is served.
        engine: Of the same model.
        metrics: Where answers are counted.
        timeout_s: Of one answer.
    """

    def __init__(
        self,
        lm: LanguageModel,
        models: Sequence[ServedModel],
        engine: Engine,
        metrics: Metrics,
        timeout_s: float,
    ) -> None:
        self._lm = lm
        self._models = {model.name: model for model in models}
        self._engine = engine
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._vocabulary = lm.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        self._tokenizing = ThreadPoolExecutor(1)  # a megabyte of text takes a second

    def close(self) -> None:
        """End the thread that tokenises."""
        self._tokenizing.shutdown()

    def model_of(self, name: str) -> ServedModel:
        """Return a served model.

        Raises:
            ApiError: 404, there is none of that name.
        """
        if name not in self._models:
            raise ApiError(
                404,
                f"expected a model among {', '.join(self._models)}, got {name[:100]!r}",
                code="model_not_found",
                param="model",
            )
        return self._models[name]

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a chat; white space around the answer is left out, as it is when experts are measured."""
        model = self.model_of(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs has no effect without logprobs: set it", param="top_logprobs")
        turns = [message.turn for message in body.messages]
        prompt_ids = await self._tokenise(lambda: self._lm.template.encode_messages(turns), "messages")
        end = self._lm.template.end_of_turn  # not always one token, which would end the answer by itself
        generation = self._generation(
            body,
            model,
            prompt_ids,
            body.max_completion_tokens or body.max_tokens,
            stop=(*body.stops, *([end] if end else [])),
            strip=True,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        return await self._answer(body, generation, ChatForm(), request)

    async def completion(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a text, token for token."""
        model = self.model_of(body.model)
        prompt = body.prompt
        if isinstance(prompt, str):
            encode = self._lm.tokenizer
            prompt_ids = await self._tokenise(lambda: list(encode(prompt)["input_ids"]), "prompt")
        else:
            prompt_ids = prompt
            if max(prompt_ids) >= self._vocabulary:
                raise ApiError(
                    400, f"expected token ids below {self._vocabulary}, got {max(prompt_ids)}", param="prompt"
                )
        generation = self._generation(
            body,
            model,
            prompt_ids,
            body.max_tokens,
            stop=body.stops,
            strip=False,
            top_logprobs=body.logprobs,
        )
        return await self._answer(body, generation, CompletionForm(), request)

    async def _tokenise(self, encode: Callable[[], list[int]], field: str) -> list[int]:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenizing, encode)
        except ConfigError as error:
            raise ApiError(400, str(error), param=field) from error

    def _generation(
        self,
        body: GenerationRequest,
        model: ServedModel,
        prompt_ids: Sequence[int],
        max_tokens: int | None,
        *,
        stop: tuple[str, ...],
        strip: bool,
        top_logprobs: int | None,
    ) -> Generation:
        if body.stream_options and not body.stream:
            raise ApiError(400, "stream_options has no effect without stream: set it", param="stream_options")
        space = self._engine.max_length - len(prompt_ids)
        if not prompt_ids or space < (max_tokens or 1):
            raise ApiError(
                400,
                f"expected 1 to {self._engine.max_length} tokens of prompt and answer together, got a prompt "
                f"of {len(prompt_ids)} and max_tokens {max_tokens or DEFAULT_MAX_TOKENS}: shorten one",
                code="context_length_exceeded",
                param="messages" if isinstance(body, ChatRequest) else "prompt",
            )
        return Generation(
            adapter=model.adapter,
            prompt_ids=tuple(prompt_ids),
            max_tokens=max_tokens or min(DEFAULT_MAX_TOKENS, space),
            temperature=DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=stop,
            strip=strip,
            top_logprobs=top_logprobs,
            experts=body.kshot.experts,
        )

    async def _answer(
        self, body: GenerationRequest, generation: Generation, form: AnswerForm, request: Request
    ) -> Response:
        pending = PendingAnswer(self._engine, generation, self._timeout_s)
        num_prompt = len(generation.prompt_ids)
        measured = _measured(pending, self._metrics.of_answer(body.model, num_prompt))
        writer = AnswerWriter(
            form,
            body.model,
            num_prompt,
            experts=body.kshot.experts,
            includes_usage=body.includes_usage,
        )
        if body.stream:
            return StreamingResponse(
                _events(writer, measured),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store"},
            )
        pieces = await unless_gone(request, _all(measured))
        return Response(status_code=499) if pieces is None else JSONResponse(writer.whole(pieces))


async def _measured(pending: PendingAnswer, metrics: AnswerMetrics) -> AsyncIterator[Piece]:
    async for piece in pending.pieces():
        metrics.add(piece.num_tokens, is_last=piece.finish_reason is not None)
        yield piece


async def _all(pieces: AsyncIterator[Piece]) -> list[Piece]:
    return [piece async for piece in pieces]


async def _events(writer: AnswerWriter, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """Yield server-sent events; a failure on the way is the last of them, as the status is sent already."""
    for chunk in writer.opening():
        yield _event(chunk)
    try:
        async for piece in pieces:
            for chunk in writer.chunks(piece):
                yield _event(chunk)
    except ApiError as error:
        yield _event(error.body)
        return
    yield "data: [DONE]\n\n"


def _event(data: Json) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
