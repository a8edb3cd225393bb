"""What can never fit is refused by its length, before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Engine, Sampling, Text


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", max_sessions=2) as made:
        yield made


def test_a_recording_is_refused_before_it_is_encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = engine.parts.requests.speech_tokenizer
    monkeypatch.setattr(type(encoder), "encode", None)
    hour = np.zeros(3600 * 8000, np.int16)
    with pytest.raises(ValueError, match=r"lasts 3600\.0 s, 45000 tokens, and the cache holds 8192"):
        engine.stream((hour, 8000))


def test_a_text_is_refused_before_it_is_encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "a" * 5_000_000
    monkeypatch.setattr(type(engine.parts.requests.tokenizer), "encode", None)
    with pytest.raises(ValueError, match=r"the prompt's text has 5000000 bytes, at least .* tokens"):
        engine.stream(Text(long))
    with pytest.raises(ValueError, match="system has 5000000 bytes"):
        engine.stream(Text("hi"), system=long)
    with engine.open_session() as session, pytest.raises(ValueError, match="the text to inject has"):
        session.inject(long)


def test_a_text_that_may_fit_is_encoded(engine: Engine) -> None:
    reply = engine.generate(Text("word " * 1200), sampling=Sampling(max_new_tokens=2, seed=1))
    assert reply.usage.prompt_tokens > 1200
