"""Samples to the file formats that clients ask for."""

from __future__ import annotations

import io

import soundfile

from innervoice.server.chat.body import AnswerFormat
from innervoice.types import Pcm16

RATE = 24000  # Hz, in every format
_FILES = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
}


def encode(pcm: Pcm16, kind: AnswerFormat) -> bytes:
    """Encode samples [n] of 24 kHz: a whole file, or little-endian bytes for pcm16."""
    if kind == "pcm16":
        return pcm.astype("<i2").tobytes()
    made = io.BytesIO()
    container, subtype = _FILES[kind]
    soundfile.write(made, pcm, RATE, format=container, subtype=subtype)
    return made.getvalue()
