"""Transcriber: the words of a user's turn, from a service of its own."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass
from typing import Protocol

import httpx2
import soundfile

from innervoice.types import Pcm16

TIMEOUT_S = 60.0
MAX_REQUESTS = 32  # at once; others wait


class TranscriptionFailed(RuntimeError):
    """A recording could not be transcribed; the conversation goes on without its text."""


@dataclass(frozen=True)
class Transcription:
    """Text of a recording, and the recording's length in seconds."""

    text: str
    duration_s: float


class Transcriber(Protocol):
    """Turns recordings of users into text."""

    async def transcribe(
        self, pcm: Pcm16, rate: int, *, language: str | None = None, prompt: str | None = None
    ) -> Transcription:
        """Transcribe samples [n] of rate Hz. Raises TranscriptionFailed."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class HttpTranscriber:
    """Asks an OpenAI-style service.

    base_url: the address whose `/audio/transcriptions` takes a WAV file, such as http://127.0.0.1:9000/v1. A
    request waits for TIMEOUT_S at most.
    """

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "whisper-1",
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._url = base_url.rstrip("/") + "/audio/transcriptions"
        self._model = model
        self._places = asyncio.Semaphore(MAX_REQUESTS)
        self._client = httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_S, transport=transport)

    async def transcribe(
        self, pcm: Pcm16, rate: int, *, language: str | None = None, prompt: str | None = None
    ) -> Transcription:
        """Transcribe samples [n] of rate Hz. Raises TranscriptionFailed."""
        fields = {"model": self._model, "response_format": "json"}
        fields |= {"language": language} if language else {}
        fields |= {"prompt": prompt} if prompt else {}
        try:
            async with self._places:
                file = await asyncio.to_thread(_to_wav, pcm, rate)
                sent = {"file": ("speech.wav", file, "audio/wav")}
                answer = await self._client.post(self._url, data=fields, files=sent)
            answer.raise_for_status()
            text = answer.json()["text"]
        except httpx2.HTTPStatusError as error:
            raise TranscriptionFailed(
                f"the transcription service answered {error.response.status_code}: see its log"
            ) from error
        except httpx2.HTTPError as error:
            raise TranscriptionFailed(f"the transcription service did not answer: {error!r}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise TranscriptionFailed("the transcription service answered without a text") from error
        return Transcription(str(text).strip(), len(pcm) / rate)

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()


def _to_wav(pcm: Pcm16, rate: int) -> bytes:
    """Write samples as a WAV file; on a thread, since they may last minutes."""
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
