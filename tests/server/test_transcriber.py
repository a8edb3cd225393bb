"""The transcription service as a client sees it: the request that it gets, and its failures."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

import httpx2
import numpy as np
import pytest
import soundfile

from innervoice.server.transcriber import HttpTranscriber, Transcription, TranscriptionFailed

SOUND = (np.sin(np.arange(4000) / 5) * 9000).astype(np.int16)


def transcribe(answer: Callable[[httpx2.Request], httpx2.Response]) -> Transcription:
    async def main() -> Transcription:
        made = HttpTranscriber(
            "http://127.0.0.1:9/v1/", model="small", api_key="sk", transport=httpx2.MockTransport(answer)
        )
        try:
            return await made.transcribe(SOUND, 8000, language="en", prompt="Names: Ada.")
        finally:
            await made.close()

    return asyncio.run(main())


def test_the_request_is_that_of_the_api() -> None:
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json={"text": " Hello. "})

    assert transcribe(answer) == Transcription("Hello.", 0.5)
    (request,) = seen
    assert str(request.url) == "http://127.0.0.1:9/v1/audio/transcriptions"
    assert request.headers["authorization"] == "Bearer sk"
    body = request.read()
    for name, value in (("model", "small"), ("language", "en"), ("prompt", "Names: Ada.")):
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in body
    wav = body[body.index(b"RIFF") :]
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="int16", frames=len(SOUND))
    assert rate == 8000
    assert (samples == SOUND).all()


def refused(_: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: httpx2.Response(500, text="oh"), "answered 500"),
        (lambda _: httpx2.Response(200, text="oh"), "without a text"),
        (lambda _: httpx2.Response(200, json=["oh"]), "without a text"),
        (lambda _: httpx2.Response(200, json={"words": []}), "without a text"),
        (refused, "did not answer"),
    ],
)
def test_a_failure_is_one_sentence(answer: Callable[[httpx2.Request], httpx2.Response], message: str) -> None:
    with pytest.raises(TranscriptionFailed, match=message):
        transcribe(answer)
