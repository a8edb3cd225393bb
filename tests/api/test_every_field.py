"""Every field of every public call against values of wrong types and at the ends of number types: refused in one
sentence that names it, or harmless; the engine answers afterwards as before.

The fields come from the classes and signatures themselves: one that nothing checks fails here.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

from innervoice import (
    Audio,
    Codec,
    Codes,
    Engine,
    EngineOptions,
    Ids,
    Sampling,
    Schedule,
    Segment,
    Session,
    SteadySettings,
    Stream,
    Text,
)
from innervoice.api.request_builder import RequestOptions
from innervoice.fields import FieldType, Limits, types_of


class Failing(int):
    """A number, an iterable and a path in which every method fails."""

    def fail(self, *_: Any) -> Any:
        """Fail."""
        raise RuntimeError("two\nlines")

    __int__ = __index__ = __float__ = __iter__ = __fspath__ = __repr__ = __lt__ = __gt__ = __eq__ = fail
    __hash__ = int.__hash__


class FailingPath:
    """A path that is none."""

    def __fspath__(self) -> str:
        raise RuntimeError("two\nlines")

    __iter__ = __fspath__


class FailingWord(str):
    """A string that compares with nothing."""

    def __eq__(self, _: object) -> bool:
        raise RuntimeError("two\nlines")

    __len__ = __eq__
    __hash__ = str.__hash__


WRONG: list[Any] = [
    Failing(5),
    FailingPath(),
    FailingWord("int16"),
    None,
    "",
    "x",
    "8000",
    "\ud800",
    b"x",
    True,
    -1,
    0,
    1,
    1.5,
    -0.5,
    math.nan,
    math.inf,
    -math.inf,
    5e-324,
    1e308,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**400,
    10**5000,
    np.int8(3),
    np.uint64(2**64 - 1),
    np.float32(0.5),
    np.float64(math.nan),
    np.bool_(True),
    np.array(3),
    np.array([3, 4]),
    np.array([[3.5]] * 2),
    1 + 2j,
    (),
    [],
    {},
    {"temperature": 0},
    [None],
    ["a"],
    [-1],
    [2**70],
    [1.5],
    [math.nan],
    {3},
    {"open": "nothing"},
    range(3),
    iter([1, 2]),
    object(),
    int,
    len,
    Text("a"),
    Sampling(),
]
SAMPLING = Sampling(temperature=0, max_new_tokens=8, seed=1)
PROMPT = Text("How are you?")


def ids(values: list[Any]) -> list[str]:
    return [f"{number}-{type(value).__name__}" for number, value in enumerate(values)]


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=4, max_model_len=512) as made:
        yield made


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[int]:
    return engine.generate(PROMPT, sampling=SAMPLING).ids


def refusal(call: Callable[[], Any], name: str) -> str | None:
    """The sentence with which a call refuses what it got; None: it took it."""
    try:
        call()
    except (ValueError, FileNotFoundError) as error:
        sentence = str(error)
        assert name in sentence and "\n" not in sentence and len(sentence) < 400, sentence
        return sentence
    return None


def is_sound(value: Any) -> bool:
    """Whether it is among the values that are samples after all."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 2


def check_alive(engine: Engine, expected: list[int]) -> None:
    assert engine.generate(PROMPT, sampling=SAMPLING).ids == expected
    core = engine.parts.core
    assert (core.table.num_active, core.table.num_waiting, len(core.table.columns)) == (0, 0, 0)


def begin(engine: Engine, **request: Any) -> None:
    """Begin a reply as far as its first event, and cancel it."""
    with engine.stream(PROMPT, **{"sampling": SAMPLING, "timeout_s": 20.0} | request) as stream:
        next(stream)
    for _ in stream:
        pass


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(RequestOptions)])
def test_request_options(engine: Engine, expected: list[int], field: str) -> None:
    verdicts = [refusal(lambda value=value: begin(engine, **{field: value}), field) for value in WRONG]
    assert sum(verdict is not None for verdict in verdicts) > len(WRONG) / 2
    check_alive(engine, expected)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Sampling)])
def test_sampling(engine: Engine, expected: list[int], field: str) -> None:
    num_refused = 0
    for value in WRONG:
        sentence = refusal(lambda value=value: Sampling(**{field: value}), f"Sampling.{field}")
        num_refused += sentence is not None
        if sentence is None:
            made = dataclasses.replace(SAMPLING, **{field: value if value is not iter else ()})
            begin(engine, sampling=made)
            own = Sampling(**{field: getattr(made, field)})
            cycle = (Segment("transcript", 2, sampling=own), Segment("speech", 2))
            refusal(lambda cycle=cycle: begin(engine, schedule=Schedule(cycle=cycle)), f"sampling.{field}")
    assert num_refused > len(WRONG) / 2
    check_alive(engine, expected)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Schedule)])
def test_schedules(engine: Engine, expected: list[int], field: str, guided: bool) -> None:
    plain = {"cycle": [["transcript", 2], ["speech", 2]], "guided": guided}
    name = {"reflection": "reflect"}.get(field, field)
    for value in WRONG:
        refusal(lambda value=value: begin(engine, schedule=Schedule(**plain | {field: value})), name)
    check_alive(engine, expected)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Segment)])
def test_segments(engine: Engine, expected: list[int], field: str, guided: bool) -> None:
    name = {"voice_as": "as"}.get(field, field)
    for kind in ("transcript", "forced"):
        plain = {"kind": kind, "budget": None, "ids": (3,) * (kind == "forced")}
        for value in WRONG:

            def make(value: Any = value, plain: Any = plain) -> None:
                cycle = (Segment(**plain | {field: value}), Segment("speech", 2))
                begin(engine, schedule=Schedule(cycle=cycle, guided=guided))

            refusal(make, f"schedule.cycle[0].{name}" if field != "kind" else "schedule.cycle")
    check_alive(engine, expected)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(EngineOptions)])
def test_engine_options(field: str) -> None:
    for value in WRONG:
        refusal(lambda value=value: EngineOptions(**{field: value}), field)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(SteadySettings)])
def test_steady_settings(field: str) -> None:
    for value in WRONG:
        refusal(lambda value=value: SteadySettings(**{field: value}), field)


def test_prompts(engine: Engine, expected: list[int]) -> None:
    for value in WRONG:
        if isinstance(value, Text):
            continue
        for call in (engine.stream, engine.generate, lambda value: engine.astream(value).reply()):
            if not (isinstance(value, list) and not value):
                with pytest.raises((ValueError, FileNotFoundError)):
                    call(value)
        if not is_sound(value):
            with pytest.raises(ValueError, match="audio"):
                engine.stream((value, 16000))
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 1000 <= value <= 384000:
            with pytest.raises(ValueError, match="rate"):
                engine.stream((np.zeros(2000, np.float32), value))
        refusal(lambda value=value: Text(value), "Text.text")
        refusal(lambda value=value: engine.stream(Ids(value)).cancel(), "id")
    check_alive(engine, expected)


def test_arguments_of_sessions_and_streams(engine: Engine, expected: list[int]) -> None:
    with engine.open_session(sampling=SAMPLING) as session:
        session.reply(PROMPT).reply()
        for value in WRONG:
            refusal(lambda value=value: session.ack_playback(value), "played")
            refusal(lambda value=value: session.ack_playback(0, reply_id=value), "reply")
            refusal(lambda value=value: session.interrupt(0, cut=value), "cut")
            refusal(lambda value=value: session.interrupt(0, reflection=value), "reflection")
            refusal(lambda value=value: session.inject(value), "text")
            if not is_sound(value):
                with pytest.raises(ValueError, match=r"audio|frame"):
                    session.push_audio(value, 16000)
            refusal(lambda value=value: session.push_audio(b"\0\0", value), "rate")
            session.clear_audio()
            if value is not None:
                refusal(lambda value=value: engine.open_session(restore=value), "restore")
            stream = engine.stream(PROMPT, sampling=SAMPLING)
            for name in ("events", "audio_s"):
                refusal(lambda value=value, name=name, stream=stream: stream.bounded(**{name: value}), name)
            stream.bounded(math.inf, math.inf).reply()
            if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
                with pytest.raises(ValueError, match="drain_s"):
                    engine.close(value)
    check_alive(engine, expected)


def test_sounds(tmp_path: Path) -> None:
    sound, path = np.zeros(900, np.float32), tmp_path / "sound.wav"
    for value in WRONG:
        refusal(lambda value=value: Audio(value, 16000).save(path), "sampl")
        refusal(lambda value=value: Audio(sound, value), "Audio.rate")
        if not isinstance(value, str):  # which would name a file here
            refusal(lambda value=value: Audio(sound, 16000).save(value), "path")
    for name in ("\ud800.wav", "\0.wav"):
        refusal(lambda name=name: Audio(sound, 16000).save(tmp_path / name), "in its name")
    with pytest.raises(ValueError, match="7 is its first sample that is not finite"):
        Audio(np.where(np.arange(900) == 7, np.float32(np.nan), sound), 16000).save(path)
    assert [found.name for found in tmp_path.iterdir()] in ([], ["sound.wav"])


UNCHECKED = {
    "Engine.load": "takes what `prepare` has made of checked options",
    "Engine.__init__": "made by from_pretrained, which checks",
    "Engine.from_pretrained": "its options are a class, and EngineOptions.locate checks the model",
    "Session.push_audio": "read_frame checks arrays, see test_arrays",
    "Stream.bounded": "a class of bounds checks",
}


def test_every_public_argument_goes_through_the_checks() -> None:
    for kind in (Engine, Session, Stream, Codec, Codes, Audio):
        for name, member in inspect.getmembers(kind):
            where = f"{kind.__name__}.{name}"
            if name.startswith("_") or not callable(member) or where in UNCHECKED:
                continue
            if (name.startswith("a") and hasattr(kind, name[1:])) or name in ("open",):
                continue  # each calls its twin without an a
            own = [one for one in inspect.signature(member).parameters.values() if one.name != "self"]
            if any(one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in own):
                assert hasattr(member, "__wrapped__"), f"{where} checks no argument: add @checked"
                assert types_of(inspect.unwrap(member)), where


def test_a_number_without_limits_is_no_field() -> None:
    with pytest.raises(TypeError, match="has no limits"):
        FieldType.of(int)
    with pytest.raises(TypeError, match="has no limits"):
        FieldType.of(float | None)
    kind = FieldType.of(Annotated[int | None, Limits(0, 5)])
    assert (kind.read(np.uint8(4), "n"), type(kind.read(np.uint8(4), "n"))) == (4, int)
    assert kind.read(None, "n") is None
    with pytest.raises(ValueError, match=r"^n is 6: it must be 0 to 5$"):
        kind.read(6, "n")
