"""ApiError: a request that is refused, with the code, message and parameter that the client gets."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A refused request.

    code, message, type: of the error object; param: the dotted path of the field at fault; status: of an HTTP
    answer; retry_after_s: seconds after which the same request may fit, None: not known.
    """

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        type: str = "invalid_request_error",
        status: int = 400,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.type = type
        self.status = status
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the error object of an HTTP answer."""
        return {"type": self.type, "code": self.code, "message": self.message, "param": self.param}
