"""The parts of a regular expression: how long it is written out, and what no automaton over ids can hold."""

from __future__ import annotations

import re

_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_PART = re.compile(r"\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_COMMENT = re.compile(r"#[^\n]*")
_VERBOSE = re.compile(r"\(\?[a-zA-Z]*x")
_FORM = re.compile(
    r"(?P<anchor>[\^$]|\\[AzZG])|(?P<boundary>\\[bB](?:\{[a-z-]+\})?|\\[<>])|(?P<look>\(\?<?[=!])"
    r"|(?P<reference>\\[1-9][0-9]*|\\[kg][<{']|\(\?P=)|(?P<atomic>\(\?>)"
)
_WHY = {
    "anchor": ("the anchor", "the whole text fits a pattern as it is, so leave it out"),
    "boundary": ("the word boundary", "write the characters that may stand around it"),
    "look": ("the look-around", "write what may stand there"),
    "reference": (
        "the back reference",
        "write what it refers to once more, or one alternative for each text",
    ),
    "atomic": ("the atomic group", "begin the group with (?:"),
}


def unsupported(pattern: str) -> tuple[str, str] | None:
    """The first form that looks around a text or back at it, and what to write in its place; None: there is none.

    Lazy quantifiers are none: they fit the same texts.
    """
    if _VERBOSE.search(pattern):
        pattern = _COMMENT.sub("", pattern)
    place = 0
    while place < len(pattern):
        form = _FORM.match(pattern, place)
        if form is not None:
            what, remedy = _WHY[str(form.lastgroup)]
            return f"{what} {form[0]!r}", remedy
        part = _PART.match(pattern, place)
        assert part is not None, "any character is a part"
        place = part.end()
    return None


def expanded_length(pattern: str) -> int:
    """About how many characters a regular expression has with its counted repeats written out."""
    totals, last, place = [0], 0, 0
    while place < len(pattern):
        repeat = _REPEAT.match(pattern, place)
        if repeat is not None:
            low, high = int(repeat[1]), int(repeat[2] or 0)
            totals[-1] += last * (max(low, high, 1) - 1)
            last *= max(low, high, 1)
            place = repeat.end()
            continue
        part = _PART.match(pattern, place)
        assert part is not None, "any character is a part"
        place = part.end()
        if part[0] == "(":
            totals.append(0)
        elif part[0] == ")" and len(totals) > 1:
            last = totals.pop() or 1
            totals[-1] += last
        else:
            last = 1
            totals[-1] += last
    return sum(totals)
