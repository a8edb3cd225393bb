"""Tones with sharp edges in place of spoken questions, and runs of callers against a scripted server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scripted_realtime import Script, ScriptedServer, scripted_server
from virtual_clock import run_virtually

from innervoice.tools.realtime_bench import (
    CallSettings,
    CrowdLog,
    RealtimeFigures,
    Recording,
    figures_of,
    hold_calls,
)
from innervoice.tools.realtime_bench.recordings import RATE

TONE_S = 0.4


def tone(
    name: str = "tone", sound_s: float = TONE_S, before_s: float = 0.3, after_s: float = 0.3
) -> Recording:
    """A question of so many seconds that can be heard, between silences."""
    sound = np.full(round(sound_s * RATE), 0.5, np.float32)
    silences = (np.zeros(round(silence_s * RATE), np.float32) for silence_s in (before_s, after_s))
    before, after = silences
    return Recording.of(name, np.concatenate([before, sound, after]), RATE)


def called(script: Script, **settings: Any) -> tuple[ScriptedServer, CrowdLog, RealtimeFigures]:
    """Let callers call a scripted server under a virtual clock -> the server, all that happened, its figures."""

    async def work() -> tuple[ScriptedServer, CrowdLog]:
        with tempfile.TemporaryDirectory() as folder:
            async with scripted_server(script, Path(folder)) as (server, connect):
                made = CallSettings(**{"url": "ws://scripted", "think_s": 0.1} | settings)
                return server, await hold_calls(made, [tone()], connect=connect)

    server, log = run_virtually(work())
    return server, log, figures_of(log)
