"""Dialogues of messages: lists of turns, greetings, edits, changed instructions, dropped turns; each reply is that of a
fresh prompt with the same history.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import (
    Delete,
    Engine,
    Ids,
    Insert,
    Message,
    Reply,
    Sampling,
    Session,
    Text,
    Truncate,
)

REQUEST: dict[str, Any] = {
    "schedule": "interleaved",
    "sampling": Sampling(temperature=0, max_new_tokens=14, ignore_eos=True),
    "realtime": False,
}
WORDS = ["hello", "how are you?", "tell me more", "why is that so?", "thank you", "a b c"]


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(
        tiny_dir, device="cpu", streaming="steady", vocoder_noise=False, max_sessions=8, max_model_len=2048
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def no_leak(engine: Engine) -> Iterator[None]:
    """Every test gives back every page."""
    yield
    core, pool = engine.parts.core, engine.parts.core.pool
    pool.check_integrity()
    assert core.num_rows == 0
    assert pool.num_available == pool.num_pages


def user(text: str, **given: Any) -> Message:
    return Message("user", Text(text), **given)


def sequence_of(engine: Engine, session: Session) -> list[int]:
    return engine._worker.call(lambda core: list(core.registry.known(session.session_id).sequence.ids))


def own_ids(engine: Engine, session: Session, item_id: str) -> list[int]:
    """The tokens of a reply that the history holds."""

    def ask(core: Any) -> list[int]:
        history = core.sessions.history(session.session_id)
        (item,) = (item for item in history.items if item.item_id == item_id)
        return history.own.of_reply(item.reply).ids

    return engine._worker.call(ask)


@dataclass
class Mirror:
    """A session, and the messages that its history must consist of."""

    engine: Engine
    session: Session
    system: str
    messages: list[Message] = field(default_factory=list)

    def as_fresh(self, *more: Message, system: str | None = None) -> list[int]:
        """The ids of a reply to the same history in a fresh prompt."""
        prompt = [*self.messages, *more]
        return self.engine.generate(prompt, system=system or self.system, **REQUEST).ids

    def reply(self, given: Any, new: list[Message], extra: str | None = None, **request: Any) -> Reply:
        """Reply in the session, hold the reply to a fresh one, and keep it as a message."""
        more = [*new, *([] if extra is None else [Message("system", Text(extra))])]
        expected = self.as_fresh(*more, system=request.get("instructions"))
        stream = self.session.reply(given, extra_system=extra, **request)
        reply = stream.reply()
        assert reply.ids == expected
        self.messages += [*new, Message("assistant", Ids(reply.ids), item_id=stream.reply_id)]
        return reply

    def edit(self, *edits: Any) -> None:
        """Edit both."""
        self.session.edit(*edits)
        for edit in edits:
            at = [message.item_id for message in self.messages]
            if isinstance(edit, Insert):
                place = 0 if edit.after is None else at.index(edit.after) + 1
                self.messages[place:place] = edit.messages
            elif isinstance(edit, Delete):
                del self.messages[at.index(edit.item_id)]
            else:
                place = at.index(edit.item_id)
                kept = own_ids(self.engine, self.session, edit.item_id)
                self.messages[place] = replace(self.messages[place], content=Ids(kept))


@pytest.mark.parametrize("seed", range(5))
def test_a_session_with_edits_replies_as_a_fresh_prompt_does(engine: Engine, seed: int) -> None:
    """Random replies, appended messages, edits, changed instructions, forks and exports."""
    draw = random.Random(seed)
    name = iter(range(1000))

    def new(role: Any = "user") -> Message:
        return Message(role, Text(draw.choice(WORDS)), item_id=f"m{next(name)}")

    mirror = Mirror(engine, engine.open_session(system="be kind", **REQUEST), "be kind")
    for _ in range(12):
        step = draw.choice(
            ["text", "list", "append", "edit", "edit", "system", "once", "extra", "fork", "export"]
        )
        replies = [m.item_id for m in mirror.messages if m.role == "assistant" and isinstance(m.content, Ids)]
        if step in ("text", "once", "extra"):
            message = new()
            given = [message] if step != "text" else [message, new("system")]
            request = {"instructions": "be terse"} if step == "once" else {}
            mirror.reply(given, given, "say it twice" if step == "extra" else None, **request)
        elif step == "list":
            given = [new("assistant"), new(), new()]
            mirror.reply(given, given)
        elif step == "append":
            first = new()
            assert mirror.session.append(first) == [first.item_id]
            mirror.reply(None, [first])
        elif step == "edit" and mirror.messages:
            place = draw.choice([None, *(m.item_id for m in mirror.messages)])
            edits: list[Any] = [Insert([new(), new("assistant")], after=place)]
            others = [m.item_id for m in mirror.messages if m.item_id != place]
            if others:
                edits.append(Delete(draw.choice(others)))
            mirror.edit(*edits)
            alive = [m.item_id for m in mirror.messages]
            replies = [item_id for item_id in replies if item_id in alive]
            if replies:
                mirror.edit(Truncate(draw.choice(replies), draw.choice([0, 100, 400, 10**6]), cut="speech"))
        elif step == "system":
            mirror.system = draw.choice(["be brief", "be kind", "sing"])
            mirror.session.update(system=mirror.system)
        else:
            old = mirror.session
            mirror.session = (
                old.fork()
                if step == "fork"
                else engine.open_session(restore=old.export(), system=mirror.system, **REQUEST)
            )
            old.close()
    mirror.reply([], [])
    listed = [(item.item_id, item.role) for item in mirror.session.items()]
    assert listed == [(m.item_id, m.role) for m in mirror.messages]
    mirror.session.close()


def test_an_edit_keeps_the_pages_before_it(engine: Engine) -> None:
    with engine.open_session(**REQUEST) as session:
        for word in WORDS[:4]:
            session.reply([user(word * 12, item_id=word)]).reply()
        before = sequence_of(engine, session)
        session.edit(Delete(WORDS[3]), Truncate(session.items()[-3].item_id, 0))
        after = sequence_of(engine, session)
        same = next(i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1])
        usage = session.reply(Text("go on")).reply().usage
        assert same > 400 and usage.cached_tokens == same < len(after) < usage.prompt_tokens


def test_a_greeting_and_a_reply_with_instructions_alone(engine: Engine) -> None:
    with engine.open_session(system="greet the caller", **REQUEST) as session:
        first = session.reply([]).reply()
        assert first.ids == engine.generate([[]], system="greet the caller", **REQUEST)[0].ids
        assert [item.role for item in session.items()] == ["assistant"]
        history = [Message("assistant", Ids(first.ids)), Message("system", Text("now ask a question"))]
        second = session.reply([history[1]]).reply()
        assert second.ids == engine.generate(history, system="greet the caller", **REQUEST).ids
        assert [item.role for item in session.items()] == ["assistant", "system", "assistant"]
    with engine.open_session(**REQUEST) as session, pytest.raises(ValueError, match="nothing to reply to"):
        session.reply()


def test_a_dialogue_of_text_and_sound_in_one_turn(engine: Engine, assets_dir: Path) -> None:
    """A recording and a text in one message are the model's own blocks side by side."""
    wave = assets_dir / "question.wav"
    tokenizer, vocabulary = engine.parts.requests.tokenizer, engine.parts.requests.vocabulary
    assert vocabulary.speech is not None and engine.parts.requests.speech_tokenizer is not None
    from innervoice.codec.audio import read_audio

    codes = engine.parts.requests.speech_tokenizer.encode(*read_audio(wave))
    special, text = tokenizer.require_special, tokenizer.encode
    sound = [
        special("<|begin_of_audio|>"),
        *(vocabulary.speech[0] + code for code in codes),
        special("<|end_of_audio|>"),
    ]
    opening = [special("<|assistant|>"), *text("streaming_transcription\n")]
    prompt = [
        *(special("[gMASK]"), special("<sop>"), special("<|system|>"), *text("\nbe brief")),
        *(special("<|user|>"), *text("\nlisten:"), *sound, *text("what was it?")),
        *(*opening[:1], *text("streaming_transcription\na question")),
        *(special("<|user|>"), *text("\none\ntwo"), *opening),
    ]
    dialogue = [
        Message("system", Text("be brief")),
        Message("user", [Text("listen:"), wave, Text("what was it?")]),
        Message("assistant", Text("a question")),
        Message("user", [Text("one"), Text("two")]),
    ]
    expected = engine.generate(Ids(prompt), **REQUEST)
    batch = engine.generate([dialogue, [user("hello")]], **REQUEST)
    assert [batch[0].ids, batch[1].ids] == [expected.ids, engine.generate(Text("hello"), **REQUEST).ids]
    assert batch[0].usage.prompt_tokens == len(prompt)
    with engine.open_session(**REQUEST) as session:
        session.append(dialogue[:3])
        session.push_audio(np.zeros(1600, np.float32), 16000)
        assert session.reply(dialogue[3:]).reply().ids == expected.ids
        assert [item.is_pending for item in session.items()] == [False] * 5
        (mixed,) = (item for item in session.items() if item.num_speech_tokens and not item.reply_id)
        assert (mixed.text, mixed.num_speech_tokens) == ("listen:\nwhat was it?", len(codes))


def test_a_long_imported_history_is_read_once(engine: Engine) -> None:
    messages = [
        Message("user" if i % 2 == 0 else "assistant", Text(f"{WORDS[i % 6]} {i}"), item_id=f"i{i}")
        for i in range(40)
    ]
    with engine.open_session(system="be brief", **REQUEST) as session:
        assert session.append(messages) == [f"i{i}" for i in range(40)]
        reply = session.reply([]).reply()
        assert reply.ids == engine.generate(messages, system="be brief", **REQUEST).ids
        again = session.reply(Text("and?")).reply().usage
        assert again.cached_tokens >= reply.usage.prompt_tokens + len(reply.ids) - 1


def test_messages_come_during_a_reply(engine: Engine) -> None:
    with engine.open_session(**REQUEST) as session:
        stream = session.reply(
            Text("hello"), sampling=Sampling(temperature=0, max_new_tokens=900, ignore_eos=True)
        )
        next(stream)
        session.append(user("one more thing", item_id="late"))
        assert [(item.role, item.is_pending) for item in session.items()] == [
            ("user", False),
            ("assistant", False),
            ("user", True),
        ]
        for edit in (Delete("late"), Insert([user("x")]), Truncate("late", 0)):
            with pytest.raises(ValueError, match="still replying"):
                session.edit(edit)
        stream.cancel()
        stream.reply()
        assert session.reply().reply().ids
        assert [item.item_id for item in session.items()][2] == "late"


def test_a_refused_edit_changes_nothing(engine: Engine) -> None:
    with engine.open_session(**REQUEST) as session:
        session.reply([user("hello", item_id="a")]).reply()
        before, ids = session.items(), sequence_of(engine, session)
        for edits, message in (
            ([Delete("a"), Delete("a")], "has no item 'a'"),
            ([Delete("a"), Insert([user("x")], after="b")], "has no item 'b'"),
            ([Insert([user("x", item_id="a")])], "item_id 'a' is in use"),
            ([Insert([user("x", item_id="n"), user("y", item_id="n")])], "item_id 'n' is in use"),
            ([Truncate("a", 5)], "item 'a' is of role user: only an assistant's"),
        ):
            with pytest.raises(ValueError, match=message):
                session.edit(*edits)
            assert (session.items(), sequence_of(engine, session)) == (before, ids)
        with pytest.raises(ValueError, match="item_id 'a' is in use"):
            session.reply([user("x", item_id="a")])
        session.append(user("y", item_id="y"))
        with pytest.raises(ValueError, match="item_id 'y' is in use"):
            session.append(user("z", item_id="y"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Message("robot", Text("x")), "role is 'robot': use system, user, assistant or tool"),  # type: ignore[arg-type]
        (lambda: Message("user", "question.wav"), r"use Text\(...\) for words, pathlib.Path"),
        (lambda: Message("user", []), "the content of a message of role user is empty"),
        (lambda: Message("user", [Text("x"), 7]), "content holds a int"),  # type: ignore[list-item]
        (lambda: Message("assistant", Path("x.wav")), "a message of role assistant holds a recording"),
        (lambda: Message("user", Text("x"), item_id=3), "item_id is 3: use a string or None"),  # type: ignore[arg-type]
        (lambda: Truncate("a", -1), "played_ms is -1: it must be"),
        (lambda: Truncate("a", float("nan")), "played_ms is nan"),
        (lambda: Truncate("a", 1, cut="words"), "cut is 'words'"),  # type: ignore[arg-type]
        (lambda: Insert(["hello"]), r"messages.* 'hello': use a Message"),  # type: ignore[list-item]
        (lambda: Delete(None), "item_id is None: use a string"),  # type: ignore[arg-type]
    ],
)
def test_bad_messages_and_edits_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"truncation": "on"}, "truncation is 'on': use disabled or auto"),
        ({"retention_ratio": 1.5}, "retention_ratio is 1.5: it must be 0 to 1"),
        ({"instructions": 7}, "instructions is 7: use a string or None"),
        ({"extra_system": b"x"}, "extra_system is b'x': use a string or None"),
        ({"item_id": ""}, "item_id is ''"),
    ],
)
def test_bad_options_are_named(engine: Engine, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.stream(Text("hello"), **request_)


def test_oldest_turns_are_dropped_down_to_a_ratio(engine: Engine) -> None:
    """The system texts and the newest turns stay, and the reply is that of a fresh prompt of them."""
    options = REQUEST | {"sampling": Sampling(temperature=0, max_new_tokens=48, ignore_eos=True)}
    long = "why is that so? " * 20
    with engine.open_session(system="be brief", **options) as session:
        session.append(Message("system", Text("the caller is called Ada"), item_id="ada"))
        for turn in range(12):
            session.append(user(f"{turn} {long}", item_id=f"u{turn}"))
            last = session.reply(truncation="auto", retention_ratio=0.5)
            reply = last.reply()
            assert reply.usage.prompt_tokens <= 2048 - 48
        items = [item.item_id for item in session.items()]
        assert items[0] == "ada" and "u0" not in items and "u11" in items
        dropped = engine.stats().incidents["dropped_turns"]
        kept = [item_id for item_id in items if item_id.startswith("u")]
        assert 0 < dropped == 12 - len(kept)
        history = [
            Message("assistant", Ids(own_ids(engine, session, item.item_id)))
            if item.role == "assistant"
            else Message(item.role, Text(item.text))  # type: ignore[arg-type]
            for item in session.items()[:-1]
        ]
        assert engine.generate(history, system="be brief", **options).ids == reply.ids
        for turn in range(20):
            session.append(user(f"{turn} {long}", item_id=f"w{turn}"))
        with pytest.raises(ValueError, match="the cache holds"):
            session.reply()
        before = [item.item_id for item in session.items()]
        stream = session.reply(truncation="auto")
        stream.reply()
        after = [item.item_id for item in session.items()]
        assert "ada" in after and "w19" in after and "w0" not in after
        assert set(stream.dropped_items) == set(before) - set(after)
        session.append(user("why? " * 2000))
        with pytest.raises(ValueError, match="the cache holds"):
            session.reply(truncation="auto")
        assert session.reply([user("and now?")], truncation="auto").reply().ids
