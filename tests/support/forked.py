"""Uses an engine in processes that were forked after it was loaded, and then goes on with it.

Usage: forked.py MODEL THREADS prints one JSON object: name of the call -> what came of it in the child.
"""

from __future__ import annotations

import gc
import inspect
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from ways_out import wait

from innervoice import Engine, Sampling, Session, Stream, Text

SHORT = Sampling(temperature=0.0, max_new_tokens=5, seed=1)
LONG = Sampling(temperature=0.0, max_new_tokens=600, ignore_eos=True, seed=1)


def calls(engine: Engine, session: Session, stream: Stream) -> dict[str, Callable[[], object]]:
    """Every public call, by name: it is refused before its arguments are looked at."""
    made: dict[str, Callable[[], object]] = {
        f"{type(owner).__name__}.{name}": getattr(owner, name)
        for owner in (engine, session, stream)
        for name in dir(owner)
        if not name.startswith("_") and inspect.isfunction(getattr(type(owner), name, None))
    }
    return made | {
        "Engine.model_id": lambda: engine.model_id,
        "Stream.__next__": lambda: next(stream),
        "Stream.__anext__": lambda: anext(stream),
    }


def outcome(call: Callable[[], object]) -> str:
    """Return how a call ended, in words."""
    try:
        return f"returned {call()!r:.60}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def in_child(run: Callable[[], object]) -> int:
    """Fork, run there, and leave as a program does -> the exit code."""
    process_id = os.fork()
    if process_id == 0:
        run()
        raise SystemExit(7)
    return wait(process_id)


def use_with() -> None:
    """Leave the blocks of all three in the child."""
    with ENGINE, SESSION, STREAM:
        sys.exit(7)


def drop() -> None:
    """Drop every reference and collect."""
    global ENGINE, SESSION, STREAM
    del ENGINE, SESSION, STREAM
    gc.collect()


def load_anew() -> None:
    """The remedy: an engine of the child's own."""
    began = time.monotonic()
    with Engine.from_pretrained(MODEL, threads=THREADS) as own:
        assert own.generate(Text("x"), sampling=SHORT).ids == EXPECTED
    assert time.monotonic() - began < 60


def report(pipe: int) -> None:
    """Write the ends of all calls into a pipe."""
    found = {name: outcome(call) for name, call in calls(ENGINE, SESSION, STREAM).items()}
    os.write(pipe, json.dumps([os.getpid(), found]).encode())


if __name__ == "__main__":
    MODEL, THREADS = sys.argv[1], int(sys.argv[2]) or None
    ENGINE = Engine.from_pretrained(MODEL, threads=THREADS)
    EXPECTED = ENGINE.generate(Text("x"), sampling=SHORT).ids
    SESSION = ENGINE.open_session()
    SESSION.push_audio(np.full(16000, 0.1, np.float32), 16000)
    STREAM = ENGINE.stream(Text("hi"), sampling=LONG, schedule="interleaved", realtime=False).bounded(
        1e9, 1e9
    )
    next(STREAM)
    source, sink = os.pipe()
    result: dict[str, object] = {"parent": os.getpid(), "report": in_child(lambda: report(sink))}
    result["child"], result["calls"] = json.loads(os.read(source, 1 << 16))
    for run in (use_with, drop, load_anew):
        result[run.__name__] = in_child(run)
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: outcome(lambda: ENGINE.generate(Text("x")))
    )
    worker.start()
    worker.join(60)
    result["multiprocessing"] = worker.exitcode
    result["goes on"] = [
        ENGINE.generate(Text("x"), sampling=SHORT).ids == EXPECTED,
        STREAM.reply().finish_reason,
        threading.active_count(),
    ]
    ENGINE.close()
    print(json.dumps(result))
