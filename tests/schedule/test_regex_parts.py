"""The parts of a regular expression: what is refused because it looks around a text, and what fits the same texts."""

from __future__ import annotations

import pytest

from innervoice.schedule import ScheduleError, Segment
from innervoice.schedule.guide import Guide
from innervoice.schedule.patterns import Patterns
from innervoice.schedule.regex_parts import unsupported
from innervoice.types import Vocabulary

pytest.importorskip("outlines_core")
PATTERNS = Patterns(Vocabulary(140, (0, 128), None, 130), lambda token: bytes([token]))


def guide_of(pattern: str) -> Guide:
    """Over an id for each character."""
    return PATTERNS.guide(Segment("reflection", pattern=pattern), "where")


@pytest.mark.parametrize(
    ("what", "patterns"),
    [
        (
            "the anchor",
            ["^a", "a$", "^a$", r"\Aa", r"a\z", r"a\Z", "(?m)^a", "a|^b", "a(?:$|b)", "(?:^|b)a", r"\\\\$"],
        ),
        ("the word boundary", [r"\ba", r"a\b", r"a\Bb", r"\<a", r"a\>", r"\b{start}a", r"(?-u)\ba"]),
        ("the look-around", ["(?=a)b", "a(?!b)", "(?<=a)b", "(?<!a)b", "b|(a(?=b))"]),
        ("the back reference", [r"(a)\1", r"(?P<x>a)(?P=x)", r"(?<x>a)\k<x>", r"(a|b)c\1"]),
        ("the atomic group", ["(?>a)b"]),
    ],
)
def test_what_looks_around_a_text_is_named(what: str, patterns: list[str]) -> None:
    """In one sentence, with what to write in its place."""
    for pattern in patterns:
        with pytest.raises(ScheduleError) as error:
            guide_of(pattern)
        message = str(error.value)
        assert message.startswith(f"where.pattern is {pattern!r}, which has {what} "), message
        assert message.count(": ") == 1 and "\n" not in message


@pytest.mark.parametrize(
    ("pattern", "same"),
    [("a*?b", "a*b"), ("a+?b", "a+b"), ("a??b", "a?b"), ("a{1,2}?b", "a{1,2}b"), ("a*+b", "a*b"), ("(?U)a+b", "a+b"),
     ("(?x)a # no ^ here\n b", "ab"), ("(?P<x>a)b", "ab"), ("(?:a|b)c", "[ab]c")],
)  # fmt: skip
def test_lazy_quantifiers_and_flags_fit_the_same_texts(pattern: str, same: str) -> None:
    def texts(regex: str) -> set[str]:
        guide, found = guide_of(regex), set()
        waiting = [("", 0)]
        while waiting:
            text, state = waiting.pop()
            if guide.distance[state] == 0:
                found.add(text)
            for token in guide.allowed(state).tolist() if len(text) < 4 else ():
                waiting.append((text + chr(token), guide.follow(state, token)))
        return found

    assert texts(pattern) == texts(same) != set()


@pytest.mark.parametrize("pattern", [r"\$", r"\^", "[$^]", r"[\b]", r"a\\b", "[^a]b"])
def test_escaped_anchors_and_those_of_a_class_are_characters(pattern: str) -> None:
    assert unsupported(pattern) is None
