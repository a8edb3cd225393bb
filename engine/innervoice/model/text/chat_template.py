"""The chat template of a checkpoint: Jinja source that turns messages into text, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from innervoice.checkpoint.files import read_json
from innervoice.files import read_text

ChatMessage = Mapping[str, str]
"""A message of a dialogue: role (system, user, assistant or tool) and content."""

# Stand-ins for an earlier turn: what they say is in no template.
_ASKED, _REPLY = "\uf8f0asked\uf8f1", "\uf8f0reply\uf8f1"
_OWN = ("messages", "add_generation_prompt")  # variables that a rendering sets itself
_RENAMED = "it writes earlier turns otherwise once there are later ones"
_PRIVATE = (*range(0xE000, 0xF8F0), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: the template's own text, in which added tokens count, or a
    speaker's words, in which none do.
    """

    text: str
    is_template: bool


class HistoryChanges(ValueError):
    """A template that writes earlier turns otherwise once there are later ones: a turn cannot just be added."""


class ChatTemplate:
    """A template with the names of the special tokens.

    now: what strftime_now formats, where a template writes the date. variables: names that the
    template reads beside the messages, such as enable_thinking.
    """

    def __init__(
        self,
        template: str,
        tokens: Mapping[str, str],
        source: Path,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self._text, self._tokens, self._now = template, dict(tokens), now
        from innervoice.model.text.template_environment import make_environment, variables_of

        environment = make_environment()
        try:
            self._template = environment.from_string(template)
            read = variables_of(environment, template)
        except Exception as error:  # nested deeply, it fails in the parser or in Python's compiler
            raise ValueError(
                f"{source}: the chat template is not valid ({_first_line(error)}): download it again"
            ) from None
        self.variables = frozenset(read - {*_OWN, *environment.globals, *self._tokens})

    @classmethod
    def read(cls, directory: str | PathLike[str]) -> ChatTemplate | None:
        """chat_template.jinja, or chat_template of tokenizer_config.json or of chat_template.json; None
        without any. The first of them counts.

        Raises ValueError.
        """
        folder = Path(directory)
        file, data = folder / "chat_template.jinja", _read_if_there(folder / "tokenizer_config.json")
        source, template = folder / "tokenizer_config.json", data.get("chat_template")
        if file.exists():
            source, template = file, read_text(file, "download it again")
        elif template is None:
            source = folder / "chat_template.json"
            template = _read_if_there(source).get("chat_template")
        if isinstance(template, list):
            named = {
                entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)
            }
            template = named.get("default")
        if template is None:
            return None
        if not isinstance(template, str):
            raise ValueError(f"{source}: chat_template is {template!r}, expected text")
        return cls(template, _special_tokens(data, folder), source)

    def dialogue(
        self,
        messages: Sequence[ChatMessage],
        variables: Mapping[str, Any] | None = None,
        *,
        to_reply: bool = True,
    ) -> list[Piece]:
        """The text of a whole dialogue, cut at what each speaker says; to_reply: up to where a reply begins.

        The pieces together are the text that the template makes of these messages. variables: of the
        template, by name. Raises ValueError where the template fails, does not write every message once, or
        writes something else because of what a message says that cannot be told from its words; and for a
        variable that the template does not read.
        """
        return self._pieces(messages, self._given(variables), to_reply)

    def turn(
        self,
        user: str,
        system: str | None,
        *,
        first: bool,
        variables: Mapping[str, Any] | None = None,
        earlier: Sequence[ChatMessage] | None = None,
    ) -> list[Piece]:
        """The text that one user turn adds to the dialogue, up to the beginning of the reply.

        first: the whole opening. Otherwise: what follows the last word of the reply before, its end
        of turn included. variables: as for `dialogue`. earlier: the users' and the model's messages so far,
        None: not known. Raises ValueError as `dialogue`, and where the template writes earlier turns
        otherwise once there are later ones.
        """
        head = [] if system is None else [_message("system", system)]
        last, given = _message("user", user), self._given(variables)
        if first:
            return self._pieces([*head, last], given)
        turn = self._after_reply(head, last, given)
        if earlier:
            self._compare([*head, *earlier], last, given, "".join(piece.text for piece in turn))
        return turn

    def check(self, variables: Mapping[str, Any]) -> None:
        """Raise ValueError for a variable that the template does not read, and for a value that is not JSON's."""
        unknown = sorted(set(variables) - self.variables)
        if unknown:
            names = f"it reads {', '.join(sorted(self.variables))}" if self.variables else "it reads none"
            raise ValueError(f"{self.source}: the chat template has no variable {unknown[0]!r}: {names}")
        for name, value in variables.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError):
                raise ValueError(
                    f"template.{name} is a {type(value).__name__}: it must be a JSON value"
                ) from None

    def check_replies(
        self, messages: Sequence[ChatMessage], variables: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse a template that makes something else of a reply because of its words, white space aside.

        Raises ValueError: a session keeps replies as they were made.
        """
        given = self._given(variables)
        words = {
            f"\uf8f0reply {i}\uf8f1": m["content"] for i, m in enumerate(messages) if m["role"] == "assistant"
        }
        names = iter(words)
        standing = [{**m, "content": next(names)} if m["role"] == "assistant" else m for m in messages]
        expected = self._render(standing, given)
        for name, content in words.items():
            expected = expected.replace(name, content)
        if expected.split() != self._render(messages, given).split():
            self._refuse("what it writes for a reply depends on the words of it")

    def _after_reply(
        self, head: Sequence[ChatMessage], last: ChatMessage, given: Mapping[str, Any]
    ) -> list[Piece]:
        """The text behind the last reply, the same after one exchange and after two."""
        asked = [*head, _message("user", _ASKED)]
        exchange = [_message("user", _ASKED), _message("assistant", _REPLY)]
        found = []
        for count in (1, 2):
            pieces = self._pieces([*head, *exchange * count, last], given)
            at = max((i for i, piece in enumerate(pieces) if piece == Piece(_REPLY, False)), default=None)
            if at is None:
                self._refuse(_RENAMED)
            found.append((pieces[:at], pieces[at + 1 :]))
        (before, turn), (_, later) = found
        if not _follows("".join(piece.text for piece in before), self._render(asked, given)) or turn != later:
            self._refuse(_RENAMED)
        return turn

    def _compare(
        self, earlier: Sequence[ChatMessage], last: ChatMessage, given: Mapping[str, Any], turn: str
    ) -> None:
        """Refuse a template that writes this very dialogue otherwise than turn by turn."""
        *before, reply = earlier
        whole, opening = self._render([*earlier, last], given), self._render(before, given)
        said = whole.removeprefix(opening).removesuffix(turn)
        if len(opening) + len(said) + len(turn) != len(whole) or said.strip() != reply["content"].strip():
            self._refuse(_RENAMED)

    def _pieces(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any], to_reply: bool = True
    ) -> list[Piece]:
        """The rendered text, cut at marks around what is said.

        A template may look at the beginning or the end of a message: then the mark at the other end has to do.
        """
        plain = self._render(messages, given, to_reply)
        marks = self._marks([message["content"] for message in messages])
        contents = [text.strip() for message in messages if (text := message["content"]).strip()]
        surplus = []
        for sides in ((True, True), (True, False), (False, True)):
            marked = [{**m, "content": _marked(m["content"], marks, sides)} for m in messages]
            rendered = self._render(marked, given, to_reply)
            pieces = _cut(rendered, contents, marks, sides)
            if pieces is not None and "".join(piece.text for piece in pieces) == plain:
                return pieces
            surplus.append(rendered.count(marks[not sides[0]]) - len(contents))
        return self._refuse(_reason(surplus, has_reply=any(m["role"] == "assistant" for m in messages)))

    def _marks(self, contents: Sequence[str]) -> tuple[str, str]:
        """Two characters of the private use areas that neither the template nor a message has."""
        used = set(self._text).union(*contents)
        free = (mark for mark in map(chr, _PRIVATE) if mark not in used)
        return next(free), next(free)

    def _given(self, variables: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a rendering reads beside the messages; the time is the same in all renderings of a call."""
        self.check(variables or {})
        moment = self._now()
        own = {"tools": None, "documents": None, "strftime_now": moment.strftime}
        return own | self._tokens | dict(variables or {})

    def _render(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any], to_reply: bool = True
    ) -> str:
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=to_reply, **given
            )
        except Exception as error:  # a template is a program and fails in any way
            self._refuse(_first_line(error))

    def _refuse(self, reason: str) -> NoReturn:
        kind = HistoryChanges if reason == _RENAMED else ValueError
        raise kind(
            f"{self.source}: the chat template fails for this dialogue ({reason}): change it, or give a prompt as Ids"
        ) from None


def _reason(surplus: Sequence[int], *, has_reply: bool) -> str:
    """What is wrong with renderings that have so many marks too many."""
    if not any(surplus):
        return "what it writes depends on the words of a message"
    if has_reply:
        return "it repeats earlier turns" if max(surplus) > 0 else _RENAMED
    return "it does not write every message once, as it is"


def _cut(
    rendered: str, contents: Sequence[str], marks: tuple[str, str], sides: tuple[bool, bool]
) -> list[Piece] | None:
    """The template's text and the contents in turn; None where the marks do not stand around each.

    Between two marks a content is whatever the template made of it, beside one it must be as it is.
    """
    pieces: list[Piece] = []
    rest = rendered
    for content in contents:
        if sides[0]:
            before, _, rest = rest.partition(marks[0])
            inner, found, rest = (
                rest.partition(marks[1]) if sides[1] else (content, content, rest.removeprefix(content))
            )
        else:
            inner, found, rest = rest.partition(marks[1])
            before, inner = inner.removesuffix(content), content
        if not found:
            return None
        pieces += [Piece(before, True), Piece(inner, False)]
    pieces.append(Piece(rest, True))
    if any(mark in piece.text for piece in pieces for mark in marks):
        return None
    return [piece for piece in pieces if piece.text]


def _follows(before: str, opening: str) -> bool:
    """Whether a reply stands where its prompt ends, behind white space that the model writes itself at most."""
    return before.startswith(opening) and not before[len(opening) :].strip()


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special_tokens(data: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """bos_token, eos_token and their kind, as tokenizer_config.json names them.

    special_tokens_map.json goes before it where tokenizer_config.json lists no added tokens, as files of
    transformers before 4.34 have it.
    """
    older = {} if "added_tokens_decoder" in data else _read_if_there(folder / "special_tokens_map.json")
    named = {
        key: value.get("content") if isinstance(value, dict) else value
        for key, value in {**data, **older}.items()
    }
    return {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}


def _message(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


def _marked(text: str, marks: tuple[str, str], sides: tuple[bool, bool]) -> str:
    """The text with marks around it, inside the white space at its ends, which templates trim or keep."""
    core = text.strip()
    start = len(text) - len(text.lstrip())
    end = start + len(core)
    left, right = (mark if side else "" for mark, side in zip(marks, sides, strict=True))
    return text[:start] + left + core + right + text[end:] if core else text


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
