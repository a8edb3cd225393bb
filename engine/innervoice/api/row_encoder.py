"""RowEncoder: recordings as embedding rows, in the place of a speech tokenizer's codes.

A window of the encoder is the unit: its rows depend on no other, are named by the digest of its features, and are
encoded once as long as they are kept. A recording that still lasts has the rows of its complete windows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from weakref import WeakValueDictionary

import numpy as np

from innervoice.codec.audio import Resampler, check_samples, resampled_len
from innervoice.codec.audio_encoder import AudioEncoder, FeatureWindow
from innervoice.codec.modes import own_modes
from innervoice.model.rows import EmbeddingRows
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples

MOST_KEPT = 64 * 2**20  # bytes of rows that are kept for recordings which come again


class RowEncoder:
    """A `SpeechEncoder` whose codes are `EmbeddingRow`s. token: the id that stands for each of them.

    Any thread may call it.
    """

    def __init__(self, encoder: AudioEncoder, token: int, tracer: Tracer | None = None) -> None:
        self._encoder = encoder
        self._token = token
        self._tracer = tracer or Tracer()
        self._name = encoder.fingerprint
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[bytes, EmbeddingRows] = WeakValueDictionary()
        self._kept: OrderedDict[bytes, EmbeddingRows] = OrderedDict()  # the most recent ones, last
        self._num_kept = 0  # bytes
        self._running: dict[bytes, Future[EmbeddingRows]] = {}

    def encode(self, samples: Samples, rate: int) -> list[int]:
        """The rows of a whole recording [T]. Raises ValueError for one that is too short, and as `check_samples`."""
        check_samples(samples, rate)
        stream = self.stream(rate)
        stream.push(samples)
        stream.end()
        return stream.take()[1]

    def stream(self, rate: int) -> RowStream:
        """A recording that comes in frames at `rate` Hz. Raises ValueError for a rate that is none."""
        return RowStream(self, self._encoder, rate)

    def step(self, streams: Sequence[RowStream]) -> None:
        """Encode the complete windows of these streams in one call."""
        windows = [one for stream in streams for one in stream.windows()]
        for stream in streams:
            stream.blocks = []
        if not windows:
            return
        blocks = iter(self.blocks(windows))
        for stream in streams:
            stream.blocks = [next(blocks) for _ in stream.windows()]

    def blocks(self, windows: Sequence[FeatureWindow]) -> list[EmbeddingRows]:
        """The rows of each window; those that are known, or are being encoded by another thread, are not encoded."""
        digests = [self._name + window.digest for window in windows]
        own: dict[bytes, FeatureWindow] = {}
        waits: dict[bytes, Future[EmbeddingRows]] = {}
        found: dict[bytes, EmbeddingRows] = {}
        with self._lock:
            for digest, window in zip(digests, windows, strict=True):
                block = self._known.get(digest)
                if block is not None:
                    found[digest] = block
                elif digest in self._running:
                    waits[digest] = self._running[digest]
                else:
                    own[digest] = window
                    waits[digest] = self._running[digest] = Future()
        if own:
            self._encode(own)
        found |= {digest: made.result() for digest, made in waits.items()}
        with self._lock:
            for digest in digests:
                self._keep(digest, found[digest])
        return [found[digest] for digest in digests]

    def items(self, blocks: Sequence[EmbeddingRows]) -> list[int]:
        """The rows of blocks as items of a prompt."""
        return [row for block in blocks for row in block.items(self._token)]

    def count_codes(self, num_samples: int, rate: int) -> int:
        """The number of rows that so many samples at `rate` Hz make, 0 for a recording that is too short."""
        num = resampled_len(num_samples, rate, self._encoder.sample_rate)
        try:
            return self._encoder.num_rows(num)
        except ValueError:
            return 0

    def block_len(self, rate: int) -> int:
        """Samples at `rate` Hz of a window."""
        return resampled_len(self._encoder.window_len, self._encoder.sample_rate, rate)

    def _encode(self, own: dict[bytes, FeatureWindow]) -> None:
        """Encode windows, and give their rows or the failure to all who wait for them."""
        try:
            with self._tracer.span("audio_encoder", windows=len(own)), own_modes():
                made = self._encoder.encode_windows(list(own.values()))
                blocks = [EmbeddingRows(rows, digest) for digest, rows in zip(own, made, strict=True)]
        except BaseException as error:
            with self._lock:
                for digest in own:
                    self._running.pop(digest).set_exception(error)
            raise
        with self._lock:
            for digest, block in zip(own, blocks, strict=True):
                self._known[digest] = block
                self._running.pop(digest).set_result(block)

    def _keep(self, digest: bytes, block: EmbeddingRows) -> None:
        """Keep a block as the most recent one, and let the oldest go. The lock is held."""
        if self._kept.pop(digest, None) is None:
            self._num_kept += block.values.nbytes
        self._kept[digest] = block
        while self._num_kept > MOST_KEPT and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._num_kept -= oldest.values.nbytes


class RowStream:
    """One recording: push frames, take rows while it lasts. Made by `RowEncoder.stream`.

    blocks: the rows of the windows that are encoded, which `RowEncoder.step` sets. num_recomputed: rows that were
    encoded again because a louder window raised the floor.
    """

    def __init__(self, rows: RowEncoder, encoder: AudioEncoder, rate: int) -> None:
        self.rate = int(rate)
        self.blocks: list[EmbeddingRows] = []
        self.num_recomputed = 0
        self._rows, self._encoder = rows, encoder
        self._target = encoder.sample_rate
        self._resampler = None if rate == self._target else Resampler(rate, self._target)
        self._recording = encoder.recording()
        self._num_pushed = 0
        self._is_ended = False
        self._taken: list[int] = []

    def push(self, samples: Samples) -> None:
        """Append samples [T] float32. Raises ValueError after the end, and for numbers that are not finite."""
        if self._is_ended:
            raise ValueError("push after the stream's end: open another stream for another recording")
        if not samples.size:
            return
        check_samples(samples, self.rate, "frame")
        self._num_pushed += len(samples)
        self._write(samples if self._resampler is None else self._resampler.push(samples, False))

    def end(self) -> None:
        """End the recording. Raises ValueError for one that is too short."""
        if self._is_ended:
            return
        if not self._num_pushed:
            raise ValueError("the stream holds 0 samples: push some sound before its end")
        self._is_ended = True
        if self._resampler is not None:
            self._write(self._resampler.push(np.zeros(0, np.float32), True))
        with own_modes():
            self._recording.end()

    def windows(self) -> list[FeatureWindow]:
        """The complete windows."""
        with own_modes():
            return self._recording.windows()

    def take(self) -> tuple[int, list[int]]:
        """Encode the complete windows: (start, rows), from place `start` on those that are new or differ from those
        taken.
        """
        self._rows.step([self])
        old, self._taken = self._taken, self._rows.items(self.blocks)
        pairs = enumerate(zip(old, self._taken, strict=False))
        start = next((i for i, (before, now) in pairs if before != now), min(len(old), len(self._taken)))
        self.num_recomputed += len(old) - start
        return start, self._taken[start:]

    @property
    def num_encoded(self) -> int:
        """Rows that are known."""
        return sum(map(len, self.blocks))

    @property
    def num_missing(self) -> int:
        """Samples at `rate` without which no further window is complete."""
        return resampled_len(max(0, self._recording.num_missing), self._target, self.rate)

    def shortened(self, kept: Samples) -> RowStream:
        """A stream of the first samples [T] alone; windows that they complete are not encoded again."""
        made = RowStream(self._rows, self._encoder, self.rate)
        made.push(kept)
        made.blocks = self._rows.blocks(made.windows()) if made.windows() else []
        return made

    def _write(self, samples: Samples) -> None:
        with own_modes():
            self._recording.push(samples)
