"""Patterns: regular expressions and JSON schemas as guides over a vocabulary, by outlines-core."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from innervoice.schedule.guide import Edges, Guide
from innervoice.schedule.json_schema import check_schema
from innervoice.schedule.program import ScheduleError, Segment
from innervoice.schedule.regex_parts import expanded_length, unsupported
from innervoice.types import Vocabulary

_MARK = b"\x00"  # what stands behind every pattern that the library is given
_MOST_GUIDES = 16
_MOST_EXPANDED = 20_000  # characters of a pattern with its repeats written out


class Patterns:
    """Makes the guides of segments over a vocabulary, each once, and keeps those that were used last. Thread-safe.

    text_of: the bytes of a text id, b"" for an id without text.
    """

    def __init__(self, vocabulary: Vocabulary, text_of: Callable[[int], bytes]) -> None:
        self._vocabulary = vocabulary
        self._text_of = text_of
        self._lock = threading.Lock()
        self._texts: Any = None  # the library's vocabulary, made with the first guide
        self._guides: OrderedDict[str, Guide] = OrderedDict()

    def guide(self, segment: Segment, where: str) -> Guide:
        """The guide of a segment's pattern or schema.

        Raises ScheduleError, which begins with `where`: without outlines-core, and for a pattern that it refuses or
        that the vocabulary cannot spell.
        """
        name = f"{where}.{'pattern' if segment.schema is None else 'schema'}"
        try:
            import outlines_core
        except ImportError:
            raise ScheduleError(
                f"{name} needs outlines-core, which is not installed: pip install 'innervoice[patterns]'"
            ) from None
        pattern = segment.pattern if segment.schema is None else _regex_of(segment.schema, name)
        assert pattern is not None, "a segment without either is bound by nothing"
        with self._lock:
            found = self._guides.pop(pattern, None)
            if found is None:
                _check_parts(pattern, name)
                found = self._made(outlines_core, pattern, name)
            self._guides[pattern] = found
            while len(self._guides) > _MOST_GUIDES:
                self._guides.popitem(last=False)
        return found

    def _made(self, library: Any, pattern: str, name: str) -> Guide:
        size = self._vocabulary.size
        if self._texts is None:
            self._texts = library.Vocabulary(size, self._ids_by_text())
        try:
            with suppress(_Unspellable):  # by a vocabulary of nothing
                _index(library, pattern, library.Vocabulary(1, {_MARK: [0]}))
            # By itself the library stops at the first end that it meets, and leaves out ids that lead from an end to none.
            # Before a mark, which no text holds, it does neither.
            index = _index(library, f"(?:{pattern})\\x00", self._texts)
        except _Unspellable:
            raise ScheduleError(_unspellable(name, pattern)) from None
        except ValueError as error:
            raise ScheduleError(
                f"{name} is {_short(pattern)}, which outlines-core refuses ({str(error)[:200]}): write a regular "
                "expression in the syntax of Rust's regex"
            ) from None
        start: int = index.get_initial_state()
        edges = _edges(index, start, size)
        ends = [state for state in edges if _is_end(index, index.get_next_state(state, size + 1))]
        found = Guide.of(edges, start, ends, size)
        if found is None:
            raise ScheduleError(_unspellable(name, pattern))
        if not len(found.edges[0][0]):
            raise ScheduleError(f"{name} is {_short(pattern)}, which only the empty text fits: leave it out")
        return found

    def _ids_by_text(self) -> Mapping[bytes, list[int]]:
        texts: dict[bytes, list[int]] = {_MARK: [self._vocabulary.size + 1]}
        for low, high in (self._vocabulary.text, *self._vocabulary.words):
            for token in range(low, high):
                text = self._text_of(token)
                if text and _MARK not in text:
                    texts.setdefault(text, []).append(token)
        return texts


class _Unspellable(Exception):
    """Some place of a pattern has no id that leads on."""


def _index(library: Any, pattern: str, texts: Any) -> Any:
    """The library's index of a pattern. Raises _Unspellable, and ValueError with its reason on one line."""
    try:
        return library.Index(pattern, texts)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise _Unspellable if "incompatible with the regex" in reason else ValueError(reason) from None


def _is_end(index: Any, state: int | None) -> bool:
    """Whether a state behind the mark, None: there is none, says that the pattern has ended before it."""
    return state is not None and bool(index.is_final_state(state))


def _edges(index: Any, start: int, size: int) -> dict[int, Edges]:
    """The edges of all states of a library's index, without those of ids that are none of the vocabulary."""
    edges: dict[int, Edges] = {}
    waiting, follow = [start], index.get_next_state
    while waiting:
        state = waiting.pop()
        if state in edges:
            continue
        ids = np.array(sorted(token for token in index.get_allowed_tokens(state) if token < size), np.int32)
        targets = np.fromiter((follow(state, token) for token in ids.tolist()), np.int32, len(ids))
        edges[state] = (ids, targets)
        waiting += np.unique(targets).tolist()
    return edges


def _regex_of(schema: str | Mapping[str, Any], name: str) -> str:
    """The regular expression of a JSON schema. Raises ScheduleError."""
    from outlines_core.json_schema import build_regex_from_schema

    if isinstance(schema, str):
        try:
            read = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ScheduleError(f"{name} is {_short(schema)}, which is no JSON ({error})") from None
    else:
        read = schema
    check_schema(read, name)
    try:
        made: str = build_regex_from_schema(json.dumps(read))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ScheduleError(f"{name} is a schema that outlines-core refuses: {reason[:200]}") from None
    return made


def _check_parts(pattern: str, name: str) -> None:
    """Refuse what no automaton holds, and repeats within repeats that would make one of endless size."""
    found = unsupported(pattern)
    if found is not None:
        what, remedy = found
        raise ScheduleError(f"{name} is {_short(pattern)}, which has {what}: {remedy}")
    num = expanded_length(pattern)
    if num > _MOST_EXPANDED:
        raise ScheduleError(
            f"{name} is {_short(pattern)}, which has {num} characters with its repeats written out: it must have at most "
            f"{_MOST_EXPANDED}"
        )


def _unspellable(name: str, pattern: str) -> str:
    return (
        f"{name} is {_short(pattern)}, a part of which no ids of the vocabulary can spell: use its characters"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
