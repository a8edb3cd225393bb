"""The chat template of a checkpoint: Jinja source that turns messages into text, rendered in a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from innervoice.checkpoint.files import read_json

Message = dict[str, str]

# Stand-ins for contents while a template is rendered: private characters that no template holds.
_EDGE = "\ue000"
_USER, _SYSTEM, _ASKED, _REPLY = (f"{_EDGE}{name}\ue001" for name in ("user", "system", "asked", "reply"))


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: the template's own text, in which added tokens count, or a
    speaker's words, in which none do.
    """

    text: str
    is_template: bool


class ChatTemplate:
    """A template with the names of the special tokens.

    now: what strftime_now formats, where a template writes the date.
    """

    def __init__(
        self,
        template: str,
        tokens: Mapping[str, str],
        source: Path,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._tokens = dict(tokens)
        try:
            self._template = _environment(now).from_string(template)
        except jinja2.TemplateError as error:
            raise ValueError(
                f"{source}: the chat template is not valid ({_first_line(error)}): download it again"
            ) from None

    @classmethod
    def read(cls, directory: str | PathLike[str]) -> ChatTemplate | None:
        """chat_template.jinja, or chat_template of tokenizer_config.json; None without either.

        Raises ValueError.
        """
        file, config = Path(directory) / "chat_template.jinja", Path(directory) / "tokenizer_config.json"
        data = read_json(config) if config.exists() else {}
        source = file if file.exists() else config
        template = file.read_text(encoding="utf-8") if file.exists() else data.get("chat_template")
        if isinstance(template, list):
            named = {
                entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
            }
            template = named.get("default")
        if template is None:
            return None
        if not isinstance(template, str):
            raise ValueError(f"{source}: chat_template is {template!r}, expected text")
        return cls(template, _special_tokens(data), source)

    def turn(self, user: str, system: str | None, *, first: bool) -> list[Piece]:
        """The text that one user turn adds to the dialogue, up to the beginning of the reply.

        first: the whole opening. Otherwise: what follows the last word of the reply before, its end
        of turn included. Raises ValueError where the template fails, or writes earlier turns
        otherwise once there are later ones.
        """
        head = [] if system is None else [_message("system", _marked(system, _SYSTEM))]
        last = _message("user", _marked(user, _USER))
        rendered = self._render([*head, last]) if first else self._after_reply(head, last)
        contents = {_USER: user.strip(), _SYSTEM: (system or "").strip()}
        return self._cut(rendered, contents, [_SYSTEM, _USER] if first else [_USER])

    def _after_reply(self, head: Sequence[Message], last: Message) -> str:
        """The text behind the last reply, the same after one exchange and after two."""
        asked = [*head, _message("user", _ASKED)]
        exchange = [_message("user", _ASKED), _message("assistant", _REPLY)]
        once, twice = (self._render([*head, *exchange * count, last]) for count in (1, 2))
        before, _, suffix = once.rpartition(_REPLY)
        if (
            not before.startswith(self._render(asked, to_reply=False))
            or twice.rpartition(_REPLY)[2] != suffix
        ):
            self._refuse("it writes earlier turns otherwise once there are later ones")
        return suffix

    def _cut(self, rendered: str, contents: Mapping[str, str], wanted: Sequence[str]) -> list[Piece]:
        """The rendered text at the stand-ins, with what they stand for."""
        parts = re.split(f"({_USER}|{_SYSTEM})", rendered)
        found = [part for part in parts if part in contents]
        if found != [mark for mark in wanted if contents[mark]]:
            self._refuse("it does not write every message once, as it is")
        if any(_EDGE in part for part in parts if part not in contents):
            self._refuse("it repeats earlier turns")
        return [Piece(contents.get(part, part), is_template=part not in contents) for part in parts if part]

    def _render(self, messages: Sequence[Message], *, to_reply: bool = True) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=to_reply,
                tools=None,
                documents=None,
                **self._tokens,
            )
        except Exception as error:  # a template is a program and fails in any way
            self._refuse(_first_line(error))

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(
            f"{self.source}: the chat template fails for this dialogue ({reason}): change it, or give a prompt as Ids"
        ) from None


class _GenerationBlock(Extension):
    """{% generation %} marks replies for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    """What templates on the hub are written for: transformers' settings, filters and functions."""
    extensions: list[str | type[Extension]] = ["jinja2.ext.loopcontrols", _GenerationBlock]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def strftime_now(pattern: str) -> str:
        return now().strftime(pattern)

    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def _special_tokens(data: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and their kind, as tokenizer_config.json names them."""
    named = {key: value.get("content") if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _marked(text: str, mark: str) -> str:
    """The mark in place of the text, but for white space at its ends, which templates trim or keep."""
    core = text.strip()
    start = len(text) - len(text.lstrip())
    return text[:start] + mark + text[start + len(core) :] if core else text


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
