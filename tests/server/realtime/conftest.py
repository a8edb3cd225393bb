"""Fixtures of conversations over a socket: the tiny checkpoint, and a server's parts that must come back whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from realtime_client import make_context

from innervoice import Engine
from innervoice.server.context import ServerContext


@pytest.fixture(scope="package")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", vocoder_noise=False, max_sessions=8) as made:
        yield made


@pytest.fixture
def context(engine: Engine, request: pytest.FixtureRequest) -> Iterator[ServerContext]:
    """A server's parts, with replies of 60 tokens or of the parameter's number; in the end no session, page or slot
    is left.
    """
    made = make_context(engine, max_output_tokens=getattr(request, "param", 60))
    yield made
    made.listener.close()
    made.calls.shutdown()
    core, pool = engine.parts.core, engine.parts.core.pool
    assert made.admission.num_held == 0
    assert made.live == set()
    pool.check_integrity()
    assert core.num_rows == 0
    assert pool.num_available == pool.num_pages


@pytest.fixture(scope="session")
def question(assets_dir: Path) -> np.ndarray:
    """A spoken question: int16 at 24 kHz, with a quiet margin."""
    import soxr

    samples, rate = soundfile.read(assets_dir / "question.wav", dtype="float32")
    pcm = soxr.resample(samples, rate, 24000)
    return np.rint(np.clip(pcm, -1, 1) * 32767).astype(np.int16)
