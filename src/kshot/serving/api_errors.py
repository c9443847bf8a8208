"""What went wrong, in the form that OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "timeout_error"}


class ApiError(HTTPException):
    """A request that is refused or failed; FastAPI lets its own kind of error through wherever it is raised.

    Args:
        status: HTTP status.
        message: What was expected, what came, what to do.
        code: OpenAI's word for it, if there is one.
        param: The field at fault.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.body: dict[str, Any] = {
            "error": {
                "message": message,
                "type": _KINDS.get(status, "invalid_request_error"),
                "param": param,
                "code": code,
            }
        }

    @property
    def response(self) -> JSONResponse:
        """Itself as a response."""
        return JSONResponse(self.body, self.status_code, self.headers)


def answer_errors(app: FastAPI) -> None:
    """Let every failure of an app be answered in that form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid_body(error).response

    @app.exception_handler(Exception)
    async def internal(_: Request, error: Exception) -> JSONResponse:
        message = f"the server failed: {type(error).__name__}; see its log, and report what it says"
        return ApiError(500, message).response


def invalid_body(error: RequestValidationError) -> ApiError:
    """Name the first field that is wrong, and how many others there are."""
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        message = f"expected a JSON object, got broken JSON: {first['ctx']['error']}"
        return ApiError(400, message, code="invalid_json")
    field = ".".join(str(part) for part in first["loc"][1:])
    problem = (
        f"{field} is not supported here: leave it out"
        if first["type"] == "extra_forbidden"
        else f"{field or 'body'}: {first['msg']}"
    )
    more = f" (and {len(others)} more)" if others else ""
    return ApiError(400, problem + more, param=field or None)
