"""Every reply's speech codes -> samples: collects codes by key, and decodes in one step all keys that have a chunk ready."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from innervoice.checkpoint.speech_decoder import MEL_HOP, MEL_RATE
from innervoice.codec.glm_voice.chunks import SteadySettings, next_border
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.reference_stream import ReferenceState
from innervoice.codec.speech_codec import Ready, SpokenChunk
from innervoice.codec.speech_codec import Streaming as Mode
from innervoice.codec.state import Slot
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples

_T = TypeVar("_T")

CHUNK_SIZES = (25, 50, 100, 150, 200)
"""Codes of the first, second, ... chunk in `reference` mode; the last size is kept."""


@dataclass
class _Stream:
    """One reply: codes of the open chunk, closed chunks that wait for `step`, how many were closed, and the decoder's state."""

    state: ReferenceState
    pending: list[int] = field(default_factory=list)
    ready: list[tuple[int, ...]] = field(default_factory=list)
    num_closed: int = 0
    finished: bool = False
    is_done: bool = False

    @property
    def num_waiting(self) -> int:
        """Codes that no step has decoded."""
        return sum(map(len, self.ready)) + len(self.pending)

    @property
    def is_due(self) -> bool:
        """Whether a step would do something."""
        return bool(self.ready) or (self.finished and not self.is_done)

    def close_full_chunk(self) -> None:
        """A token arrives: the original looks at the chunk now, before it takes the token in."""
        if len(self.pending) >= CHUNK_SIZES[min(self.num_closed, len(CHUNK_SIZES) - 1)]:
            self.ready.append(tuple(self.pending))
            self.pending.clear()
            self.num_closed += 1


Chunks = list[SpokenChunk]


class GlmVoiceOutput:
    """Keys are replies. `steady`: chunks at fixed token indices, all replies in one call. `reference`: chunks as GLM-4-Voice's
    demo cuts them. `offline`: everything at the end.
    """

    def __init__(
        self,
        decoder: SpeechDecoder,
        mode: Mode = "steady",
        tracer: Tracer | None = None,
        *,
        max_slots: int = 64,
        settings: SteadySettings | None = None,
    ) -> None:
        if mode not in ("steady", "offline", "reference"):
            raise ValueError(f"streaming mode {mode!r} is not known: use 'steady', 'offline' or 'reference'")
        self.decoder = decoder
        self.mode = mode
        self.sample_rate = decoder.sample_rate
        self.codes_per_s = decoder.codes_per_s
        self.codes_per_frame = 1
        self.lag_s = MEL_HOP / MEL_RATE
        self.num_slots = max_slots
        self._tracer = tracer or Tracer()
        self._settings = settings or SteadySettings()
        self._lane = (
            _SteadyLane(decoder, max_slots, settings) if mode == "steady" else _ChunkLane(decoder, mode)
        )

    @property
    def num_open(self) -> int:
        """Replies that are open."""
        return self._lane.num_open

    def next_border(self, num_codes: int) -> int | None:
        """How many codes, more than these, complete a reply's next chunk; None: nothing is decoded before its end."""
        if self.mode == "offline":
            return None
        if self.mode == "steady":
            return next_border(num_codes, self._settings)
        border = index = 0
        while border <= num_codes:
            border += CHUNK_SIZES[min(index, len(CHUNK_SIZES) - 1)]
            index += 1
        return border

    def open(self, key: str) -> None:
        """Begin a reply. Raises ValueError when the key is in use or all slots are taken."""
        self._lane.refuse_open(key)
        self._lane.open(key)

    def push(self, key: str, codes: Sequence[int]) -> None:
        """Speech codes arrived, in order; none is fine. Raises ValueError: key unknown, finished or broken, code out of range."""
        self._lane.push(key, self.decoder.check(codes))

    def tick(self, key: str) -> None:
        """A token that is not speech arrived; in `reference` mode it closes a full chunk. Not for the reply's end: `finish`."""
        self._lane.tick(key)

    def finish(self, key: str) -> None:
        """No more codes will come; the next step decodes what is left. Raises ValueError for an unknown or finished key."""
        self._lane.finish(key)

    def ready(self) -> list[Ready]:
        """The replies that have something due, in the order they were opened in."""
        return self._lane.ready()

    def ended(self) -> list[str]:
        """None: a step gives every reply its last chunk."""
        return []

    def step(self, keys: Collection[str] | None = None) -> Chunks:
        """Decode all that is ready: (key, samples, is the reply's last), each key's in order; the last one may be empty.

        keys: of these replies alone; one that has nothing due is passed over. None: of all.
        A reply that breaks ends with an empty last chunk and an entry in `errors`; the others are not touched.
        Raises ValueError for an unknown key, before anything is decoded.
        """
        with self._tracer.span("voice step", open=self._lane.num_open):
            return self._lane.step(keys)

    @property
    def errors(self) -> Mapping[str, str]:
        """Open keys whose reply broke, each with a sentence that says why."""
        return self._lane.errors

    def close(self, key: str) -> None:
        """Forget a reply, finished or not. Raises ValueError for an unknown key."""
        self._lane.close(key)

    def fork(self, key: str, new_key: str) -> None:
        """A second reply goes on from where one is. Raises ValueError: key unknown, new key in use, no slot, not `steady`."""
        self._lane.refuse_open(new_key)
        self._steady().fork(key, new_key)

    def export(self, key: str) -> bytes:
        """A reply's whole state. Raises ValueError for an unknown or broken key, and in a mode that is not `steady`."""
        return self._steady().export(key)

    def restore(self, key: str, exported: bytes) -> None:
        """Open a key with what `export` gave, in a voice of the same weights and settings. Raises ValueError."""
        self._lane.refuse_open(key)
        self._steady().restore(key, exported)

    def _steady(self) -> _SteadyLane:
        if not isinstance(self._lane, _SteadyLane):
            raise ValueError(f"{self.mode!r} streaming cannot copy a reply: use 'steady'")
        return self._lane


class _ChunkLane:
    """`offline` and `reference`: one reply after the other."""

    def __init__(self, decoder: SpeechDecoder, mode: Mode) -> None:
        self._decoder, self._mode = decoder, mode
        self._streams: dict[str, _Stream] = {}
        self.errors: dict[str, str] = {}

    @property
    def num_open(self) -> int:
        return len(self._streams)

    def refuse_open(self, key: str) -> None:
        _refuse_open(key, self._streams)

    def open(self, key: str) -> None:
        self._streams[key] = _Stream(self._decoder.init_state())

    def push(self, key: str, codes: Sequence[int]) -> None:
        stream = self._unfinished(key)
        for code in codes:
            if self._mode == "reference":
                stream.close_full_chunk()
            stream.pending.append(code)

    def tick(self, key: str) -> None:
        stream = self._unfinished(key)
        if self._mode == "reference":
            stream.close_full_chunk()

    def finish(self, key: str) -> None:
        self._unfinished(key).finished = True

    def ready(self) -> list[Ready]:
        return [Ready(key, stream.num_waiting) for key, stream in self._streams.items() if stream.is_due]

    def step(self, keys: Collection[str] | None) -> Chunks:
        named = dict(self._streams) if keys is None else {key: _find(key, self._streams) for key in keys}
        chunks: Chunks = []
        for key, stream in named.items():
            try:
                self._decode(key, stream, chunks)
            except Exception as error:
                chunks.append(self._break(key, stream, error))
        return chunks

    def close(self, key: str) -> None:
        _find(key, self._streams)
        del self._streams[key]
        self.errors.pop(key, None)

    def _decode(self, key: str, stream: _Stream, chunks: Chunks) -> None:
        while stream.ready:
            samples, stream.state = self._decoder.push(stream.state, stream.ready.pop(0), final=False)
            chunks.append(SpokenChunk(key, _finite(samples), False))
        if stream.finished and not stream.is_done:
            chunks.append(SpokenChunk(key, _finite(self._rest(stream)), True))

    def _break(self, key: str, stream: _Stream, error: Exception) -> SpokenChunk:
        self.errors[key] = (
            f"the reply broke after {len(stream.state.codes)} codes: {error}; close it and start again"
        )
        stream.ready.clear()
        stream.finished = stream.is_done = True
        return SpokenChunk(key, np.zeros(0, np.float32), True)

    def _rest(self, stream: _Stream) -> Samples:
        codes = tuple(stream.pending)
        stream.pending.clear()
        stream.is_done = True
        if self._mode == "offline":
            return self._decoder.decode(codes)
        samples, stream.state = self._decoder.push(stream.state, codes, final=True)
        return samples

    def _unfinished(self, key: str) -> _Stream:
        stream = _find(key, self._streams)
        if key in self.errors:
            raise ValueError(f"voice {key!r}: {self.errors[key]}")
        if stream.finished:
            raise ValueError(f"voice {key!r} is finished: it takes no more codes")
        return stream


class _SteadyLane:
    """`steady`: every reply in a slot, one call for all."""

    def __init__(self, decoder: SpeechDecoder, max_slots: int, settings: SteadySettings | None) -> None:
        self._decoder = decoder.steady(settings, num_slots=max_slots)
        self._slots: dict[str, Slot] = {}
        self._finished: set[str] = set()
        self.errors: dict[str, str] = {}

    @property
    def num_open(self) -> int:
        return len(self._slots)

    def refuse_open(self, key: str) -> None:
        _refuse_open(key, self._slots)

    def open(self, key: str) -> None:
        self._slots[key] = self._decoder.open()

    def push(self, key: str, codes: Sequence[int]) -> None:
        self._decoder.push(self._unfinished(key), codes)

    def tick(self, key: str) -> None:
        self._unfinished(key)

    def finish(self, key: str) -> None:
        self._decoder.finish(self._unfinished(key))
        self._finished.add(key)

    def ready(self) -> list[Ready]:
        names = self._names()
        return [Ready(names[slot], pending) for slot, pending in self._decoder.ready()]

    def step(self, keys: Collection[str] | None) -> Chunks:
        names = self._names()
        chunks: Chunks = []
        slots = None if keys is None else [_find(key, self._slots) for key in keys]
        for sound in self._decoder.step(slots):
            key = names[sound.slot]
            if sound.error is not None:
                self.errors[key] = sound.error
            chunks.append(SpokenChunk(key, sound.samples, sound.last))
        return chunks

    def close(self, key: str) -> None:
        self._decoder.close(_find(key, self._slots))
        del self._slots[key]
        self._finished.discard(key)
        self.errors.pop(key, None)

    def fork(self, key: str, new_key: str) -> None:
        self._slots[new_key] = self._decoder.fork(self._unbroken(key))
        if key in self._finished:
            self._finished.add(new_key)

    def export(self, key: str) -> bytes:
        return save_tensors(self._decoder.export(self._unbroken(key)))

    def restore(self, key: str, exported: bytes) -> None:
        try:
            tensors = load_tensors(exported)
        except Exception as error:
            raise ValueError(f"these bytes are not an exported voice: {error}") from error
        slot = self._decoder.restore(tensors)
        self._slots[key] = slot
        if self._decoder.is_finished(slot):
            self._finished.add(key)

    def _names(self) -> dict[Slot, str]:
        return {slot: key for key, slot in self._slots.items()}

    def _unbroken(self, key: str) -> Slot:
        slot = _find(key, self._slots)
        if key in self.errors:
            raise ValueError(f"voice {key!r}: {self.errors[key]}")
        return slot

    def _unfinished(self, key: str) -> Slot:
        slot = self._unbroken(key)
        if key in self._finished:
            raise ValueError(f"voice {key!r} is finished: it takes no more codes")
        return slot


def _refuse_open(key: str, known: Mapping[str, object]) -> None:
    if key in known:
        raise ValueError(f"voice {key!r} is open already: close it first or use another key")


def _find(key: str, known: Mapping[str, _T]) -> _T:
    if key not in known:
        raise ValueError(f"voice {key!r} is not open: open it first")
    return known[key]


def _finite(samples: Samples) -> Samples:
    if not np.isfinite(samples).all():
        raise ArithmeticError("its samples are not finite")
    return samples
