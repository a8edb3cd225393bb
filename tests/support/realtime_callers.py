"""Callers of a Realtime server, in a process of their own so that they hold nothing of the server up.

Run as a file: `realtime_callers.py URL KEY NUM_CALLERS NUM_CALLS SEED [rough]`. Prints JSON: how the calls ended and the
seconds from the end of speech to the first sound. Of rough callers most hang up in the middle, some read slowly and some
flood the server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources

import numpy as np
import soundfile
import soxr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

RATE = 24000
STEP_S = 0.1
MAX_TOKENS = 60
MANNERS = ("polite", "hang up", "vanish", "slow", "flood", "nonsense")
NONSENSE = ("{", "[]", '{"type": "none.such"}', '{"type": "input_audio_buffer.append", "audio": "%"}')


@dataclass
class Tally:
    """What became of the calls."""

    ends: Counter[str] = field(default_factory=Counter)
    first_sound_s: list[float] = field(default_factory=list)


def question() -> bytes:
    """A spoken question and the silence after it, as the protocol has sound."""
    path = resources.files("innervoice") / "assets" / "question.wav"
    samples, rate = soundfile.read(str(path), dtype="float32")
    spoken = soxr.resample(samples, rate, RATE)
    joined = np.concatenate([spoken, np.zeros(RATE, dtype=np.float32)])
    return (joined * 32767).astype("<i2").tobytes()


async def say(connection: ClientConnection, sound: bytes) -> float:
    """Speak in real time -> the time at which all was said."""
    size = int(2 * RATE * STEP_S)
    for start in range(0, len(sound), size):
        audio = base64.b64encode(sound[start : start + size]).decode()
        await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        await asyncio.sleep(STEP_S)
    return time.monotonic()


async def listen(connection: ClientConnection, tally: Tally, *, pause_s: float = 0.0) -> str:
    """Read until the reply is over -> its status."""
    stopped_s: float | None = None
    async for message in connection:
        event = json.loads(message)
        kind = event["type"]
        if kind == "input_audio_buffer.speech_stopped":
            stopped_s = time.monotonic()
        if kind == "response.output_audio.delta" and stopped_s is not None:
            tally.first_sound_s.append(time.monotonic() - stopped_s)
            stopped_s = None
        if kind == "response.done":
            return str(event["response"]["status"])
        if pause_s:
            await asyncio.sleep(pause_s)
    return "closed"


async def call(url: str, key: str, sound: bytes, manner: str, chance: random.Random, tally: Tally) -> str:
    """Make one call in a manner -> how it ended."""
    headers = {"Authorization": f"Bearer {key}"}
    async with connect(url, additional_headers=headers, max_size=None, open_timeout=60) as connection:
        session = {"type": "realtime", "max_output_tokens": MAX_TOKENS}
        await connection.send(json.dumps({"type": "session.update", "session": session}))
        if manner == "flood":
            block = base64.b64encode(sound * 4).decode()
            for _ in range(chance.randint(1, 6)):
                await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": block}))
            return manner
        if manner == "nonsense":
            for _ in range(chance.randint(1, 40)):
                await connection.send(chance.choice(NONSENSE))
        if manner in ("hang up", "vanish"):
            speaking = asyncio.create_task(say(connection, sound))
            await asyncio.sleep(chance.uniform(0.0, 3.0))
            speaking.cancel()
            if manner == "vanish":
                connection.transport.abort()
            return manner
        speaking = asyncio.create_task(say(connection, sound))
        try:
            return await listen(connection, tally, pause_s=0.05 if manner == "slow" else 0.0)
        finally:
            speaking.cancel()


async def caller(
    url: str, key: str, sound: bytes, num_calls: int, is_rough: bool, chance: random.Random, tally: Tally
) -> None:
    """Make calls one after another."""
    for _ in range(num_calls):
        manner = chance.choice(MANNERS) if is_rough else "polite"
        try:
            tally.ends[await asyncio.wait_for(call(url, key, sound, manner, chance, tally), 90)] += 1
        except InvalidStatus as error:
            tally.ends[f"refused {error.response.status_code}"] += 1
            await asyncio.sleep(0.2)
        except ConnectionClosed as error:
            tally.ends[f"closed {error.rcvd.code if error.rcvd else None}"] += 1
        except (TimeoutError, OSError) as error:
            tally.ends[type(error).__name__] += 1


async def run(url: str, key: str, num_callers: int, num_calls: int, seed: int, is_rough: bool) -> Tally:
    """Let callers call side by side."""
    tally, sound = Tally(), question()
    chances = [random.Random(f"{seed} {i}") for i in range(num_callers)]
    await asyncio.gather(*(caller(url, key, sound, num_calls, is_rough, chance, tally) for chance in chances))
    return tally


if __name__ == "__main__":
    address, own_key, *numbers = sys.argv[1:6]
    made = asyncio.run(run(address, own_key, *map(int, numbers), is_rough="rough" in sys.argv))  # type: ignore[arg-type]
    print(json.dumps({"ends": made.ends, "first_sound_s": made.first_sound_s}))
