"""Answers over HTTP: refusals as OpenAI's API words them."""

from __future__ import annotations

import math

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from innervoice.server.admission import RETRY_S
from innervoice.server.errors import ApiError
from innervoice.types import EngineDead, OutOfCapacity

_CODES = {404: "unknown_url", 405: "method_not_supported", 413: "request_too_large"}


def refusal(error: ApiError) -> JSONResponse:
    """The answer to a refused request, with Retry-After where there is a time."""
    headers = {}
    body = error.body()
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        body["retry_after"] = error.retry_after_s
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": body}, error.status, headers)


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of `ApiError`."""
    assert isinstance(error, ApiError), error
    return refusal(error)


async def refuse_plainly(_: Request, error: Exception) -> JSONResponse:
    """Starlette's handler of its own errors: no such route or method, a body that is too large."""
    assert isinstance(error, HTTPException), error
    code = _CODES.get(error.status_code, "invalid_request_error")
    return refusal(ApiError(code, error.detail, status=error.status_code))


def as_api_error(error: Exception) -> ApiError:
    """The refusal that stands for an error of the engine."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OutOfCapacity):
        retry_s = RETRY_S if math.isinf(error.retry_after_s) else error.retry_after_s
        return ApiError(
            "rate_limit_exceeded", str(error), type="rate_limit_error", status=429, retry_after_s=retry_s
        )
    if isinstance(error, EngineDead):
        return ApiError("server_error", f"the engine has stopped: {error}", type="server_error", status=503)
    if isinstance(error, ValueError | FileNotFoundError):
        return ApiError("invalid_value", str(error))
    return ApiError("server_error", str(error) or type(error).__name__, type="server_error", status=500)
