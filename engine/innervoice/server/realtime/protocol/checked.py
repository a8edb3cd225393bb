"""Decoding into msgspec structs, where a refusal becomes an ApiError with the dotted path of the field."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from innervoice.server.errors import ApiError

T = TypeVar("T")

_PATH = re.compile(r"^(?P<text>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")


def convert(value: Any, kind: type[T], path: str) -> T:
    """Check a decoded JSON value against a struct.

    path: where the value stands in its event. Raises ApiError, whose parameter begins with it.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise refusal(str(error), path) from None


def refusal(message: str, path: str) -> ApiError:
    """Turn the message of a msgspec.ValidationError into the refusal that a client gets."""
    found = _PATH.match(message)
    assert found is not None, "every message matches"
    text, param = found["text"], _join(path, found["path"] or "")
    missing = _MISSING.match(text)
    if missing:
        param = _join(param, missing["name"])
        return ApiError("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    unknown = _UNKNOWN.match(text)
    if unknown:
        param = _join(param, unknown["name"])
        inside = (
            " A session's settings belong into 'session', a response's into 'response'." if not path else ""
        )
        return ApiError("unknown_parameter", f"Unknown parameter: '{param}'.{inside}", param)
    return ApiError("invalid_value", f"{text}, in '{param}'." if param else f"{text}.", param or None)


def _join(path: str, name: str) -> str:
    if not path or not name:
        return path or name
    return path + name if name.startswith("[") else f"{path}.{name}"
