"""The speech codecs that checkpoints are tried by, in order: those registered last
first, GLM-4-Voice's at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from innervoice.codec.glm_voice.codec import read_glm_voice_codec
from innervoice.codec.speech_codec import SpeechCodec

ReadSpeechCodec = Callable[[Path | None, Path | None], SpeechCodec | None]
"""Reads the config files of an encoder's directory and a decoder's; None: these are not of that codec.

Raises FileNotFoundError, and ValueError where they are and cannot be run.
"""

_READERS: list[ReadSpeechCodec] = [read_glm_voice_codec]


def register_speech_codec(read: ReadSpeechCodec) -> Callable[[], None]:
    """Let checkpoints be tried by `read` before the codecs known so far.

    The result takes that back; called again it does nothing. Raises ValueError for what is no function and
    for one that is registered already.
    """
    if not callable(read):
        raise ValueError(f"a speech codec's reader is {read!r}: pass a function of two directories")
    if read in _READERS:
        raise ValueError(f"{read!r} is registered already: take that back first")
    _READERS.insert(0, read)
    undo = ExitStack()
    undo.callback(_READERS.remove, read)
    return undo.close


def read_speech_codec(encoder: Path | None, decoder: Path | None) -> SpeechCodec | None:
    """Find the codec whose halves lie in these directories, None when both are None.

    Raises FileNotFoundError, ValueError.
    """
    if encoder is None and decoder is None:
        return None
    found = next((codec for read in _READERS if (codec := read(encoder, decoder)) is not None), None)
    if found is None:
        raise ValueError(
            f"{encoder or decoder} holds no speech codec that is known: "
            "register one, or name another directory"
        )
    return found
