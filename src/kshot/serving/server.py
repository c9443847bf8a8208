"""The routes: models, chats, completions, health, metrics, and a page to chat on."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from time import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response

from kshot.language_model import LanguageModel
from kshot.serving.api_errors import ApiError, answer_errors
from kshot.serving.engine import Engine
from kshot.serving.gate import Gate
from kshot.serving.limits import Limits
from kshot.serving.metrics import CountRequests, Metrics
from kshot.serving.page import page_response
from kshot.serving.protocol import ChatRequest, CompletionRequest
from kshot.serving.responder import Responder
from kshot.serving.served_models import ServedModel


def create_app(
    lm: LanguageModel,
    models: Sequence[ServedModel],
    engine: Engine,
    limits: Limits,
    *,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Return the server as an ASGI application; it closes the engine when it ends.

    Args:
        lm: A base with mixtures.
        models: What it serves.
        engine: Of the same model.
        limits: What is asked of clients.
        hosts: Names that requests may call the server by; None is any. A web page of another name cannot then
            reach a server on its reader's machine by pointing that name at it.
    """
    metrics = Metrics(engine)
    responder = Responder(lm, models, engine, metrics, limits.timeout_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()
        responder.close()

    app = FastAPI(
        title="kshot",
        version=version("kshot"),
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Gate, limits=limits)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)
    app.add_middleware(CountRequests, metrics=metrics)
    answer_errors(app)
    _add_generation(app, responder)
    _add_models(app, responder, models)
    _add_operation(app, engine, metrics)
    return app


def _add_generation(app: FastAPI, responder: Responder) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await responder.chat(body, request)

    @app.post("/v1/completions", response_model=None)
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await responder.completion(body, request)


def _add_models(app: FastAPI, responder: Responder, models: Sequence[ServedModel]) -> None:
    created = int(time())

    def described(model: ServedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": created,
            "owned_by": "kshot",
            "kshot": {"experts": model.experts},
        }

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [described(model) for model in models]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        return described(responder.model_of(name))


def _add_operation(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_response()

    @app.get("/health")
    async def health() -> JSONResponse:
        return _state(engine.is_alive, "the model's thread has ended: restart the server")

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return _state(engine.is_ready, "no request can be taken: the queue is full or the server is stopping")

    @app.get("/metrics", response_model=None)
    async def show_metrics() -> Response:
        return metrics.response()


def _state(is_good: bool, otherwise: str) -> JSONResponse:
    return JSONResponse({"status": "ok"}) if is_good else ApiError(503, otherwise).response
