"""Every public dataclass crosses a process: pickled and read back it is equal, in this process and in another."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import innervoice
from innervoice import (
    Codec,
    Codes,
    Delete,
    EngineOptions,
    Evaluation,
    Fusion,
    Insert,
    Item,
    Likelihood,
    Likelihoods,
    Message,
    Plan,
    Schedule,
    Segment,
    SteadySettings,
    Truncate,
)
from innervoice.runtime.event_queue import Bounds
from innervoice.telemetry.histogram import Spread
from innervoice.telemetry.metrics import Distribution, RequestTimings, StreamsCarried, measure, summarize
from innervoice.telemetry.stats import MEASURES, Occupancy, Telemetry
from innervoice.tools.loadgen import CallResult, Load, LoadResult, Question
from innervoice.tools.replay.recording import Chunk, RecordedReply, Token
from innervoice.tools.replay.replay import Replayed
from innervoice.types import (
    Audio,
    AudioChunk,
    Done,
    End,
    EngineDead,
    Event,
    EventField,
    Heard,
    Ids,
    OutOfCapacity,
    Reflection,
    ReflectionBudget,
    Reply,
    RequestFailed,
    Sampling,
    Speech,
    Text,
    TokenEvent,
    Tool,
    ToolCall,
    Transcript,
    Usage,
    Vocabulary,
    logged_fields,
)

SAMPLING = Sampling(temperature=0.5, top_k=3, seed=2**64 - 1, stop_token_ids=(1, 2), logprobs=True)
DRAWN = Sampling(temperature=0.5)
CYCLE = (Segment("reflection", 5, sampling=DRAWN), Segment("speech", 2))
SCHEDULE = Schedule(prologue=(Segment("forced", ids=(1, 2)),), cycle=CYCLE)
USAGE = Usage(prompt_tokens=3, sampling=SAMPLING, ttft_ms=1.5, reflection_caps=(3, 0, 8))
EVENT = {"reply_id": "r", "index": 3, "t": 0.25}
TOKENS = EVENT | {"segment": 1, "ids": [4, 5], "text": "a\u2028", "forced": True, "logprobs": [-0.5, -1.0]}
PCM = np.linspace(-1, 1, 7, dtype=np.float32)
DONE = Done(**EVENT, finish_reason="interrupted", usage=USAGE, error="why")
LOG = RequestTimings(0.5, 1000, ((1.0, 10), (2.0, 20)), ((0.75, "speech"),), 2.5, 0.1, "stop", None, "r")
REPLY = Reply(
    Audio(PCM, 22050), "hi", ["hm"], [AudioChunk(**EVENT, pcm=PCM, rate=22050, start=0), DONE], "stop", USAGE
)
RECORDING = RecordedReply(
    (1, 2),
    SCHEDULE,
    SAMPLING,
    (3,),
    16000,
    "int16",
    "m",
    (Token("speech", 0, 4),),
    (Chunk(0, 7, 22050, 1),),
    "stop",
)

EXAMPLES: list[Any] = [
    Text("hello"),
    Message("user", [Text("hello"), Ids((1, 2)), b"RIFF"], item_id="a"),
    Item("a", "user", "hello", 3, "r", True),
    Delete("a"),
    Insert([Message("system", Text("be brief"))], after="a"),
    Truncate("a", 1.5, cut="speech", reflection="keep"),
    SteadySettings(look_back=344, steps=5),
    Ids([1, 2]),
    SAMPLING,
    EngineOptions(device="cpu", max_sessions=3, streaming=SteadySettings(steps=5)),
    Fusion.pragmatic(prior=(0.25, 0.75)),
    SCHEDULE,
    *SCHEDULE.cycle,
    USAGE,
    Event(kind="x", **EVENT, extra={"loudness": 0.5}),
    EventField("length", ("speech", "end"), max),
    logged_fields(Speech)[0],
    ReflectionBudget(20, 3, 1.5, 1),
    TokenEvent(kind="x", **TOKENS),
    Reflection(**TOKENS),
    Transcript(**TOKENS),
    Speech(**TOKENS, codes=np.array([1, 2], np.int32)),
    ToolCall("f", "{}", "f{}"),
    Tool(**TOKENS, call=ToolCall("f")),
    End(**TOKENS),
    REPLY.events[0],
    DONE,
    REPLY.audio,
    REPLY,
    AudioChunk(**EVENT, pcm=np.array([1, -2], np.int16), rate=22050, start=0),
    Heard(3, "hi", 2, 40),
    Vocabulary(10, (0, 5), (5, 9), 9, eos=(9,)),
    Bounds(5, 1.5),
    Codes("mimi", (np.array([1, 2]), np.array([3, 4])), np.ones(1, np.float32), 9),
    LOG,
    measure(LOG),
    measure(LOG).underruns,
    measure(LOG).tokens,
    Distribution.of([1.0, 2.0]),
    summarize([LOG]),
    StreamsCarried(4, None),
    Occupancy(running=3),
    Spread(1, 1.0, 1.0, 1.0, None),
    Telemetry("a").stats(),
    Telemetry("a").readings()[-1],
    MEASURES[0],
    RECORDING,
    *RECORDING.tokens,
    *RECORDING.chunks,
    Replayed(3, 7, PCM, "token 3 is missing"),
    Load(3, 2.5, 4, 1, 9),
    Question("q", Text("a"), {"sampling": SAMPLING}),
    CallResult(LOG, "q", 3, 1, 0.5, USAGE, {"schedule": SCHEDULE}, [{"kind": "done"}]),
    LoadResult([CallResult(LOG, "q", 3)], [0.001]),
    Likelihood((1, 2), (-0.5, -1.0)),
    Likelihoods((Likelihood((1,), (-0.5,)),), 4, 2, 5),
    Evaluation.of({"support": 3.5}, "zero-shot", USAGE),
]
ERRORS = [
    RequestFailed("no memory"),
    OutOfCapacity("all 4 sessions are in use", 2.5),
    EngineDead("the engine stopped"),
]
# Modules whose public dataclasses callers see, and what they do not get from the others.
MODULES = (
    "types",
    "runtime.event_queue",
    "runtime.record",
    "telemetry.metrics",
    "telemetry.stats",
    "tools.replay",
    "tools.loadgen",
)


def same(one: Any, other: Any) -> bool:
    """Equal in type and every field, arrays element by element."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return vars(one) == vars(other) if type(one).__module__.startswith("innervoice.") else one == other


def public_dataclasses() -> set[type]:
    names = [f"innervoice.{name}" for name in MODULES]
    for name in list(names):
        module = importlib.import_module(name)
        names += [f"{name}.{found.name}" for found in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    found = [
        kind
        for name in names
        for kind in vars(importlib.import_module(name)).values()
        if inspect.isclass(kind)
    ]
    own = [kind for kind in found if kind.__module__ in names]
    exported = [getattr(innervoice, name) for name in innervoice.__all__]
    return {
        kind
        for kind in [*own, *filter(inspect.isclass, exported)]
        if dataclasses.is_dataclass(kind) and not kind.__name__.startswith("_")
    }


def test_every_public_dataclass_has_an_example() -> None:
    assert {kind.__name__ for kind in public_dataclasses() - {type(example) for example in EXAMPLES}} <= {
        Plan.__name__,
        Codec.__name__,
    }


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_and_read_back_they_are_equal(protocol: int) -> None:
    for example in EXAMPLES:
        assert same(pickle.loads(pickle.dumps(example, protocol)), example), type(example).__name__


def test_a_plan_is_pickled(tiny_dir: Path) -> None:
    from innervoice.api.memory_plan import make_plan
    from innervoice.checkpoint.locate import locate

    plan = make_plan(locate(tiny_dir), EngineOptions(device="cpu"))
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_keep_their_words(error: Exception) -> None:
    read = pickle.loads(pickle.dumps(error))
    assert type(read) is type(error) and str(read) == str(error) and vars(read) == vars(error)


def test_another_process_reads_and_answers_them(tmp_path: Path) -> None:
    """Read in a process that has imported nothing, and written again there."""
    (tmp_path / "out").write_bytes(pickle.dumps([*EXAMPLES, *ERRORS]))
    code = "import pickle, sys\nread = pickle.load(open('out', 'rb'))\npickle.dump(read, open('back', 'wb'))\nprint(len(read))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{len(EXAMPLES) + len(ERRORS)}\n", done.stderr
    back = pickle.loads((tmp_path / "back").read_bytes())
    assert all(map(same, back, EXAMPLES)) and len(back) == len(EXAMPLES) + len(ERRORS)
    assert [str(error) for error in back[len(EXAMPLES) :]] == [str(error) for error in ERRORS]
