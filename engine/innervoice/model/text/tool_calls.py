"""The text of a tool call, which is read from a model's reply or written as a model would."""

from __future__ import annotations

import json
import re
from typing import Any

from innervoice.model.text.chat_template import Piece
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer
from innervoice.types import Ids, ToolCall, Vocabulary

_NAMED = re.compile(r"([\w.-]{1,256})\s*(\{.*)", re.DOTALL)


def read_call(text: str) -> ToolCall:
    """Read the name and the arguments of a call.

    A call is a JSON object with name and arguments (or parameters), an object or one as JSON text; or a name and
    a JSON object behind it. Anything else has an error.
    """
    written = text.strip()
    named = _NAMED.fullmatch(written)
    values = _read_json(written)
    if isinstance(values, dict) and isinstance(values.get("name"), str) and values["name"]:
        name, given = values["name"], values.get("arguments", values.get("parameters", {}))
    elif named is not None:
        name, given = named[1], _read_json(named[2])
    else:
        return ToolCall(
            "", "", text, "it is neither a JSON object with a name and arguments, nor a name and an object"
        )
    if isinstance(given, str):
        given = _read_json(given)
    if not isinstance(given, dict):
        return ToolCall("", "", text, "its arguments are no JSON object")
    return ToolCall(name, json.dumps(given, ensure_ascii=False), text)


def call_begin(tokenizer: TextTokenizer, vocabulary: Vocabulary, name: str) -> list[int]:
    """The ids that the text of a call of this function begins with, up to its arguments."""
    return _encode_later(tokenizer, _begin(vocabulary, name))


def call_ids(tokenizer: TextTokenizer, vocabulary: Vocabulary, call: ToolCall) -> Ids:
    """A call as a model writes it, marks included.

    Raises ValueError for arguments that are no JSON object, and for a checkpoint that names no tool tokens.
    """
    if vocabulary.tool_open is None or vocabulary.tool_close is None:
        raise ValueError(
            "the checkpoint names no tool tokens, so a message holds no ToolCall: name them in its schedule.json"
        )
    if not isinstance(_read_json(call.arguments), dict):
        raise ValueError(
            f"ToolCall.arguments is {call.arguments[:80]!r}: it must be the JSON text of an object"
        )
    form, begin = vocabulary.tool_begin.replace("{name}", ""), _begin(vocabulary, call.name)
    space = " " if begin.endswith((":", ",")) else ""
    end = "}" * (form.count("{") - form.count("}")) + ("\n" if begin.startswith("\n") else "")
    text = _encode_later(tokenizer, begin + space + call.arguments + end)
    return Ids([vocabulary.tool_open, *text, vocabulary.tool_close])


def _begin(vocabulary: Vocabulary, name: str) -> str:
    return vocabulary.tool_begin.replace("{name}", json.dumps(name, ensure_ascii=False)[1:-1])


def _encode_later(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids of text that does not stand at the beginning."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.encode_pieces([Piece(text, is_template=False)], at_start=False)
    return tokenizer.encode(text)


def _read_json(text: str) -> Any:
    """A JSON value; None for what is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
