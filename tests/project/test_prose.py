"""Docstrings and documents are plain English: first sentences have a subject or an imperative, and no private dialect."""

from __future__ import annotations

import re

import pytest
from paths import ENGINE, KERNELS, ROOT
from source_tree import DOCUMENTS, Docstring, docstrings, modules, without_docstring

# A first sentence begins with its subject or with an imperative, not with a relative clause or a pronoun.
BARE = re.compile(r"(What|Who|Whose|Whom|Whoever|Where|How|Which|Why|Of|Its|So|They|Those|It|Within,|When)\b")
# Data is given, passed or written, not told; the agent of a sentence is a caller, a reader, a reply, not somebody.
BANNED = re.compile(
    r"\b(told|tells?|telling|nobody|somebody|anybody|whoever|whomever|whom|who stands|"
    r"(of|in|to|from|than|by|for|with|on) what|what (is|was|are|were|has|had))\b",
    re.IGNORECASE,
)


def offence(docstring: Docstring) -> str | None:
    """The reason why a first sentence is none, or None."""
    sentence = docstring.first_sentence
    if BARE.match(sentence):
        return f"begins with {sentence.split()[0]!r}"
    if found := BANNED.search(sentence):
        return f"says {found[0]!r}"
    if len(re.findall(r"\w+", sentence)) < 3:
        return "is too short"
    return None


def prose(text: str) -> str:
    """A document without its code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`]*`", "", text)


def test_first_sentences_are_sentences() -> None:
    found = [one for path in modules(ENGINE) + modules(KERNELS) for one in docstrings(path)]
    assert len(found) > 1000
    bad = [f"{one}  <- {reason}" for one in found if (reason := offence(one))]
    assert not bad, "\n".join(bad)


def test_helpers_of_the_tests_have_docstrings() -> None:
    support = ROOT / "tests" / "support"
    assert [str(name) for path in modules(support) for name in without_docstring(path)] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_free_of_the_private_dialect(name: str) -> None:
    text = prose((ROOT / name).read_text(encoding="utf-8"))
    assert [found[0] for found in BANNED.finditer(text)] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Who stands there.",
        "Let a player that nobody hears run on.",
        "Percent that is true, none for what is empty.",
        "Whoever steps the core tells it the time.",
        "What a step did.",
        "SNAC's.",
        "Raise ValueError for what is no way to cut.",
    ],
)
def test_the_rule_finds_riddles(sentence: str) -> None:
    assert offence(Docstring(ROOT / "x.py", 1, "x", sentence)) is not None


@pytest.mark.parametrize(
    "sentence",
    [
        "The request, active reply or session that owns this row of the scheduler table.",
        "Read all queued device steps, so that host state equals device state.",
        "Whether the reply has ended.",
        "Percentage of true values; None for an empty input.",
    ],
)
def test_the_rule_leaves_good_sentences_alone(sentence: str) -> None:
    assert offence(Docstring(ROOT / "x.py", 1, "x", sentence)) is None
