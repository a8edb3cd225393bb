"""eSpeak NG through its C interface: phonemes for Kokoro, and one more kind of user voice."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import numpy as np

from training.sources import unpacked

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL
UTF8 = 1  # espeakCHARS_UTF8
IPA_WITH_TIES = 0x02 | (ord("^") << 8) | 0x80
RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library, which has one global state: one voice at a time, one instance in a process."""

    def __init__(self) -> None:
        folder = unpacked("espeakng-loader") / "espeakng_loader"
        self._lib = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        self.sample_rate = int(
            self._lib.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(folder / "espeak-ng-data"), 0)
        )
        if self.sample_rate <= 0:
            raise RuntimeError(
                "eSpeak NG did not start: remove its folder under unpacked/ and run the stage `fetch`"
            )
        self._lib.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._pieces: list[np.ndarray] = []
        self._callback = _CALLBACK(self._take)  # kept: C holds a pointer to it
        self._lib.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], num_samples: int, _events: int) -> int:
        if samples and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def phonemes(self, clause: str, voice: str = "en-us") -> str:
        """Return one clause in IPA, with `^` between the two halves of a diphthong or affricate."""
        self._set_voice(voice)
        text = ctypes.c_char_p(clause.encode())
        pointer = ctypes.pointer(text)
        found = []
        while text.value:
            found.append(self._lib.espeak_TextToPhonemes(pointer, UTF8, IPA_WITH_TIES).decode())
        return " ".join(piece for piece in found if piece)

    def speak(self, text: str, voice: str, rate: int = 160, pitch: int = 50, span: int = 50) -> np.ndarray:
        """Return speech as float32 at `sample_rate`: words a minute, pitch and its range from 0 to 100."""
        self._set_voice(voice)
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, span)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._pieces = []
        data = text.encode()
        self._lib.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        self._lib.espeak_Synchronize()
        return np.concatenate(self._pieces).astype(np.float32) / 32768

    def _set_voice(self, voice: str) -> None:
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice!r}: see voices/ in its data folder")


@cache
def espeak() -> Espeak:
    """Return the one instance of this process."""
    return Espeak()
