"""A program that ends in many ways while replies are made, each in a process of its own.

Usage: ways_out.py MODEL THREADS NAME... prints one JSON object: name -> [exit code, stderr]. The libraries are
imported once, and every process is forked before it loads its engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

from innervoice import Engine, Sampling, Stream, Text

DEADLINE_S = 120
kept: list[object] = []  # what the program still holds when it ends


def begin(engine: Engine, number: int = 1, tokens: int = 3000) -> list[Stream]:
    """Start replies and read the first event of each."""
    kept.append(engine)
    sampling = Sampling(temperature=0.0, max_new_tokens=tokens, ignore_eos=True, seed=1)
    streams = [
        engine.stream(Text("hello"), sampling=sampling, schedule="interleaved", realtime=False).bounded(
            1e9, 1e9
        )
        for _ in range(number)
    ]
    kept.extend(streams)
    for stream in streams:
        next(stream)
    return streams


def end_of_script(engine: Engine) -> None:
    """End by the last line."""
    begin(engine)


def many_replies(engine: Engine) -> None:
    """End while several replies are made side by side."""
    begin(engine, 6)


def exception(engine: Engine) -> None:
    """End by an exception."""
    begin(engine)
    raise RuntimeError("mine")


def sys_exit(engine: Engine) -> None:
    """End by sys.exit."""
    begin(engine)
    sys.exit(7)


def inside_with_stream(engine: Engine) -> None:
    """End inside a stream's block."""
    with begin(engine)[0]:
        sys.exit(7)


def inside_with_engine(engine: Engine) -> None:
    """End inside an engine's block."""
    with engine:
        begin(engine)
        sys.exit(7)


def abandoned(engine: Engine) -> None:
    """End when nothing refers to the engine."""
    begin(engine)
    kept.clear()


def exit_in_a_thread(engine: Engine) -> None:
    """Raise SystemExit in a thread, which ends that thread alone."""
    begin(engine)
    thread = threading.Thread(target=lambda: sys.exit(7))
    thread.start()
    thread.join()


def daemon_reader(engine: Engine) -> None:
    """End while a daemon thread reads."""
    [stream] = begin(engine)
    threading.Thread(target=stream.reply, daemon=True).start()


def daemon_callers(engine: Engine) -> None:
    """Recordings are encoded on the callers' threads when the program ends."""
    sound = np.random.default_rng(0).uniform(-0.1, 0.1, 40 * 16000).astype(np.float32)

    def call() -> None:
        """Send one request after another."""
        while True:
            engine.generate((sound, 16000))

    kept.append(engine)
    for _ in range(2):
        threading.Thread(target=call, daemon=True).start()
    time.sleep(0.3)


def patient_reader(engine: Engine) -> None:
    """A thread that is no daemon reads its replies to their end when the main thread has ended."""
    streams = begin(engine, 3, 100)

    def read() -> None:
        """Read the replies."""
        time.sleep(0.2)
        if any(stream.reply().finish_reason != "length" for stream in streams):
            os._exit(3)

    threading.Thread(target=read).start()


def interrupted(engine: Engine) -> None:
    """End by SIGINT, which a shell's job in the background would ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    [stream] = begin(engine)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    stream.reply()
    raise AssertionError("the signal came too late")


def terminated(engine: Engine) -> None:
    """End by a handler of SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    [stream] = begin(engine)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    stream.reply()
    raise AssertionError("the signal came too late")


def pushed_audio(engine: Engine) -> None:
    """End while pushed sound is encoded."""
    session = engine.open_session()
    kept.extend([engine, session])
    session.push_audio(np.full(16000 * 20, 0.1, np.float32), 16000)


def async_reader(engine: Engine) -> None:
    """End inside a task."""

    async def read() -> None:
        """Read the replies."""
        [stream] = begin(engine)
        task = asyncio.create_task(stream.areply())
        await asyncio.sleep(0.05)
        assert not task.done()
        sys.exit(7)

    asyncio.run(read())


def async_for(engine: Engine) -> None:
    """End by an exception inside `async for`."""

    async def read() -> None:
        """Read the replies."""
        async for _ in begin(engine)[0]:
            raise RuntimeError("mine")

    asyncio.run(read())


WAYS: dict[str, tuple[Callable[[Engine], None], int]] = {
    "end of script": (end_of_script, 0),
    "many replies": (many_replies, 0),
    "exception": (exception, 1),
    "sys.exit": (sys_exit, 7),
    "inside with stream": (inside_with_stream, 7),
    "inside with engine": (inside_with_engine, 7),
    "abandoned": (abandoned, 0),
    "exit in a thread": (exit_in_a_thread, 0),
    "daemon reader": (daemon_reader, 0),
    "daemon callers": (daemon_callers, 0),
    "patient reader": (patient_reader, 0),
    "interrupted": (interrupted, -signal.SIGINT),
    "terminated": (terminated, 7),
    "pushed audio": (pushed_audio, 0),
    "async reader": (async_reader, 7),
    "async for": (async_for, 1),
}
"""By name: what runs, and the exit code that is the program's own."""


def wait(process_id: int) -> int:
    """Wait for a process -> its exit code, negative for a signal; one that does not end is killed."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(process_id, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(process_id, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])


def main(model: str, threads: str, names: list[str]) -> None:
    """Fork one process for each way; each of them ends behind the last line of this one."""
    found: dict[str, tuple[int, str]] = {}
    for name in names:
        errors = os.memfd_create("stderr")
        process_id = os.fork()
        if process_id == 0:
            os.dup2(errors, 2)
            WAYS[name][0](Engine.from_pretrained(model, threads=int(threads) or None))
            return
        code = wait(process_id)
        found[name] = code, os.pread(errors, 1 << 20, 0).decode()
        os.close(errors)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or list(WAYS))
