"""Every reply's speech codes -> samples: collects codes by key, and decodes in one step all keys that have a chunk ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from innervoice.codec.decoder import SpeechDecoder
from innervoice.codec.reference_stream import ReferenceState
from innervoice.trace import Tracer
from innervoice.types import Samples

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

    def close_full_chunk(self) -> None:
        """A token arrives: the original looks at the chunk now, before it takes the token in."""
        if len(self.pending) >= CHUNK_SIZES[min(self.num_closed, len(CHUNK_SIZES) - 1)]:
            self.ready.append(tuple(self.pending))
            self.pending.clear()
            self.num_closed += 1


class Voice:
    """Keys are replies. `offline`: everything at the end, in one call. `reference`: chunks as GLM-4-Voice's demo cuts them."""

    def __init__(
        self, decoder: SpeechDecoder, mode: Literal["offline", "reference"] = "reference", tracer: Tracer | None = None
    ) -> None:
        if mode not in ("offline", "reference"):
            raise ValueError(f"streaming mode {mode!r} is not known: use 'offline' or 'reference'")
        self.decoder = decoder
        self.mode = mode
        self.sample_rate = decoder.sample_rate
        self.codes_per_s = decoder.codes_per_s
        self._tracer = tracer or Tracer()
        self._streams: dict[str, _Stream] = {}

    def open(self, key: str) -> None:
        """Begin a reply. Raises ValueError when the key is in use."""
        if key in self._streams:
            raise ValueError(f"voice {key!r} is open already: close it first or use another key")
        self._streams[key] = _Stream(self.decoder.init_state())

    def push(self, key: str, codes: Sequence[int]) -> None:
        """Speech codes arrived, in order. Raises ValueError for an unknown or finished key and for a code out of range."""
        stream = self._unfinished(key)
        for code in self.decoder.check(codes):
            if self.mode == "reference":
                stream.close_full_chunk()
            stream.pending.append(code)

    def tick(self, key: str) -> None:
        """A token that is not speech arrived: it closes a full chunk, as in the original. Not for the reply's end: `finish`."""
        stream = self._unfinished(key)
        if self.mode == "reference":
            stream.close_full_chunk()

    def finish(self, key: str) -> None:
        """No more codes will come; the next step decodes what is left. Raises ValueError for an unknown or finished key."""
        self._unfinished(key).finished = True

    def step(self) -> list[tuple[str, Samples, bool]]:
        """Decode all that is ready: (key, samples, is the reply's last), each key's in order; the last one may be empty."""
        with self._tracer.span("voice step", open=len(self._streams)):
            return [chunk for key, stream in self._streams.items() for chunk in self._decode(key, stream)]

    def close(self, key: str) -> None:
        """Forget a reply, finished or not. Raises ValueError for an unknown key."""
        self._stream(key)
        del self._streams[key]

    def _decode(self, key: str, stream: _Stream) -> list[tuple[str, Samples, bool]]:
        chunks = []
        while stream.ready:
            samples, stream.state = self.decoder.push(stream.state, stream.ready.pop(0), final=False)
            chunks.append((key, samples, False))
        if stream.finished and not stream.is_done:
            chunks.append((key, self._rest(stream), True))
        return chunks

    def _rest(self, stream: _Stream) -> Samples:
        codes = tuple(stream.pending)
        stream.pending.clear()
        stream.is_done = True
        if self.mode == "offline":
            return self.decoder.decode(codes)
        samples, stream.state = self.decoder.push(stream.state, codes, final=True)
        return samples

    def _stream(self, key: str) -> _Stream:
        if key not in self._streams:
            raise ValueError(f"voice {key!r} is not open: open it first")
        return self._streams[key]

    def _unfinished(self, key: str) -> _Stream:
        stream = self._stream(key)
        if stream.finished:
            raise ValueError(f"voice {key!r} is finished: it takes no more codes")
        return stream
