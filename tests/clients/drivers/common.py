"""Surroundings of a client: the server's address and key, a spoken question, and lines of JSON for what was seen."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

BASE = os.environ["REALTIME_BASE"]  # http://HOST:PORT/v1
WS_BASE = BASE.replace("http", "ws", 1)
KEY = os.environ["REALTIME_KEY"]
MODEL = "gpt-realtime"
RATE = 24000
STEP_S = 0.1
SILENCE = bytes(int(2 * RATE * STEP_S))


def show(kind: str, **fields: Any) -> None:
    """Print something that was seen, from any thread."""
    sys.stdout.write(json.dumps({"kind": kind, **fields}, default=str) + "\n")
    sys.stdout.flush()


def question() -> bytes:
    """A spoken question as PCM16 at 24 kHz."""
    return Path(os.environ["REALTIME_QUESTION"]).read_bytes()


def mode() -> str:
    """The first word of the command line."""
    return sys.argv[1] if len(sys.argv) > 1 else ""


def pieces(sound: bytes, size: int = len(SILENCE)) -> list[bytes]:
    """Cut sound into blocks of at most so many bytes."""
    return [sound[start : start + size] for start in range(0, len(sound), size)]


async def spoken(sound: bytes, silence_s: float) -> AsyncIterator[bytes]:
    """Blocks of 100 ms in real time: the sound, then silence."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    for piece in [*pieces(sound), *[SILENCE] * round(silence_s / STEP_S)]:
        yield piece
        due_s += STEP_S
        await asyncio.sleep(max(0.0, due_s - loop.time()))
