"""The ids of a segment's tags and texts, and the automaton that finds a tag of several ids among drawn ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from innervoice.schedule.guide import Guide
from innervoice.schedule.patterns import Patterns
from innervoice.schedule.program import ScheduleError, Segment
from innervoice.types import Vocabulary
from innervoice_kernels.sampling.cursor_columns import Edge


class Spelling:
    """Turns tags and texts into ids.

    special: the id of a token's string; encode: the ids of any text. Without them only ids are taken. patterns: makes
    the guides of segments that a pattern binds.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: Callable[[str], int | None] | None,
        encode: Callable[[str], Sequence[int]] | None,
        patterns: Patterns | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._special = special
        self._encode = encode
        self._patterns = patterns

    def ids(self, given: str | Sequence[int], where: str = "text") -> tuple[int, ...]:
        """The ids of a text, of a token's string, or those given.

        Raises ScheduleError, which begins with `where`: for text without a tokenizer, and for ids outside the
        vocabulary.
        """
        if isinstance(given, str):
            found = self._special(given) if self._special else None
            if found is None and self._encode is None:
                raise ScheduleError(
                    f"{where} is {given!r}, and there is no tokenizer: give it as a list of ids"
                )
            given = (found,) if found is not None else self._encode(given) if self._encode else ()
        for token in given:
            if not 0 <= token < self._vocabulary.size:
                raise ScheduleError(
                    f"{where}: id {token} is outside the vocabulary of {self._vocabulary.size}"
                )
        return tuple(given)

    def open(self, segment: Segment) -> tuple[int, ...]:
        """The ids that open a reflection: its own, or the checkpoint's."""
        return self._own(segment.open, self._vocabulary.open)

    def close(self, segment: Segment) -> tuple[int, ...]:
        """The ids that close a reflection: its own, or the checkpoint's."""
        return self._own(segment.close, self._vocabulary.close)

    def guide(self, segment: Segment, where: str = "segment") -> Guide:
        """The guide of a segment that a pattern binds. Raises ScheduleError, which begins with `where`."""
        if self._patterns is None:
            raise ScheduleError(f"{where} has a pattern, and there is no tokenizer: load a model with one")
        return self._patterns.guide(segment, where)

    def paths(self, segment: Segment, where: str = "text") -> dict[tuple[int, ...], str]:
        """The ids of each text of a choice -> the text; ids as a JSON list.

        Raises ScheduleError for two that are the same, and for one with which another begins.
        """
        found: dict[tuple[int, ...], str] = {}
        for place, choice in enumerate(segment.choices):
            name = choice if isinstance(choice, str) else json.dumps(list(choice))
            ids = self.ids(choice, f"{where}[{place}]")
            if not ids:
                raise ScheduleError(f"{where}[{place}] has no ids, so nothing can spell it: write a text")
            if ids in found:
                raise ScheduleError(f"{where}[{place}] has the ids of {found[ids]!r}: write it once")
            found[ids] = name
        for ids, name in found.items():
            for length in range(1, len(ids)):
                if ids[:length] in found:
                    raise ScheduleError(
                        f"{where}: {name!r} begins with the ids of {found[ids[:length]]!r}, which would never end: "
                        "end each with a mark, such as a line break"
                    )
        return found

    def _own(self, own: str | tuple[int, ...] | None, common: int | None) -> tuple[int, ...]:
        if own is not None:
            return self.ids(own)
        return () if common is None else (common,)


def tag_states(close: tuple[int, ...], stop: tuple[int, ...]) -> list[dict[int, int]]:
    """The states of a text in which a tag, or one of several ids, is looked for: in state n its last n ids
    are the longest beginning of the tag that they can be.

    A state has the ids that lead from it to another than the first, or that close the segment.
    """
    states = []
    for length in range(max(len(close), 1)):
        edges = {}
        for token in set(close):
            seen = (*close[:length], token)
            fits = max(n for n in range(min(len(seen), len(close)) + 1) if seen[len(seen) - n :] == close[:n])
            if fits:
                edges[token] = int(Edge.CLOSES) if fits == len(close) else fits
        states.append(edges | dict.fromkeys(stop, int(Edge.CLOSES)))
    return states
