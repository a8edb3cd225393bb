"""A recording that comes in frames -> codes of its blocks as they are complete; the whole
recording at once is the same code.

A block is complete when its samples and the right half of its last mel frame's window are there; it is
encoded once, from its own frames, the four before and the keys and values of the blocks before. The floor of
the log-mel features, 8 below the loudest value of the piece, rises when a louder frame comes: blocks from the
first on whose frames change are encoded again. Features and blocks are computed in the same shapes however
the samples came, so states do not depend on that, bit for bit; in a batch of streams they are the same but
for the rounding of matrix products.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from innervoice.checkpoint.speech_tokenizer import CONV_STRIDE, SpeechTokenizerConfig
from innervoice.codec.audio import Resampler, check_samples, resampled_len
from innervoice.codec.glm_voice.whisper_encoder import (
    LEFT_FRAMES,
    AudioBlock,
    Context,
    WhisperWeights,
    encode_blocks,
    pool,
)
from innervoice.codec.modes import own_modes
from innervoice.types import Samples
from innervoice_kernels.speech_codec.mel import floor_frames, log_frames
from innervoice_kernels.speech_codec.vq import nearest_code

REFERENCE_BATCH = 128  # pieces that the original pads to a common length


@dataclass(frozen=True, eq=False)
class Network:
    """The tensors that all streams of a tokenizer share: weights by checkpoint
    name, filters [n_fft / 2 + 1, M].
    """

    config: SpeechTokenizerConfig
    weights: WhisperWeights
    filters: torch.Tensor


class TokenizerStream:
    """One recording: push frames, take codes while it lasts, finish. Not for two threads at once.

    num_recomputed: tokens encoded again because a louder frame raised the floor. Made
    by `SpeechTokenizer.stream`.
    """

    def __init__(self, network: Network, rate: int) -> None:
        check_samples(np.zeros(1, np.float32), rate, "stream")
        self.network = network
        self.rate = int(rate)
        self.num_recomputed = 0
        self._resampler = (
            None
            if self.rate == network.config.sample_rate
            else Resampler(self.rate, network.config.sample_rate)
        )
        self._num_pushed = 0  # samples at `rate`
        self._is_ended = False
        self._pieces: deque[_Piece] = deque()  # the first is being encoded
        self._num_pieces = 0
        self._done: list[int] = []  # codes of pieces before
        self._taken: list[int] = []

    def push(self, samples: Samples, rate: int | None = None) -> None:
        """The next samples [T], T from 0 on; what they complete is ready to be encoded.

        Raises ValueError after the end, for a rate that is not the stream's and for numbers that are
        not finite; nothing changes.
        """
        if self._is_ended:
            raise ValueError("push after the stream's end: open another stream for another recording")
        if rate not in (None, self.rate):
            raise ValueError(
                f"the rate changed from {self.rate} to {rate} Hz within a stream: finish it and open another"
            )
        if samples.size:
            check_samples(samples, self.rate, "frame")
            self._num_pushed += len(samples)
            frame = samples.astype(np.float32, copy=False)
            self._write(self._resampler.push(frame, False) if self._resampler else frame)

    def end(self) -> None:
        """No more samples: all that is left is ready.

        Raises ValueError for a stream of 0 samples; nothing changes.
        """
        if not self._num_pushed:
            raise ValueError("the stream holds 0 samples: push some sound before its end")
        if self._is_ended:
            return
        self._is_ended = True
        if self._resampler:
            self._write(self._resampler.push(np.zeros(0, np.float32), True))
        if self._pieces:
            self._pieces[-1].is_ended = True
            self._listen(self._pieces[-1])

    def ready(self) -> bool:
        """Is a block waiting to be encoded, for the first time or again?"""
        return bool(self._pieces) and self._pieces[0].num_encoded < self._pieces[0].num_complete

    @property
    def num_missing(self) -> int:
        """Samples at `rate` that the next block waits for, with those that a resampler holds back."""
        config = self.network.config
        if self._pieces and not self._pieces[-1].is_ended:
            missing = self._pieces[-1].num_missing
        else:
            missing = min(config.piece_len, _needed(config, CONV_STRIDE * config.block_len))
        return resampled_len(missing, config.sample_rate, self.rate)

    def take(self) -> tuple[int, list[int]]:
        """Encode the complete blocks; (start, codes): the codes from place `start` on that are new or
        differ from those taken before.

        Codes are final given what was heard: later sound that is louder may revise those of the same
        piece. Then `start` is less than the number taken before, and what was taken from there on is void.
        Nothing new: (number taken, []).
        """
        encode_ready([self])
        old, self._taken = self._taken, self._codes()
        pairs = enumerate(zip(old, self._taken, strict=False))
        start = next((i for i, (before, now) in pairs if before != now), len(old))
        return start, self._taken[start:]

    def finish(self) -> list[int]:
        """End and encode the rest: all codes, those of `SpeechTokenizer.encode` of the whole.

        Raises ValueError as `end` does.
        """
        self.end()
        encode_ready([self])
        return self._codes()

    def shortened(self, kept: Samples) -> TokenizerStream:
        """A stream of the first samples alone; blocks that they complete are not encoded again.

        kept: those samples [T], as they were pushed. This stream is not to be used any more.
        """
        made = TokenizerStream(self.network, self.rate)
        made.push(kept)
        num_over = self._num_pieces - len(self._pieces)  # pieces whose codes alone are left
        per_piece = math.ceil(self.network.config.piece_len / self.network.config.token_len)
        while num_over and made._pieces and made._pieces[0].is_ended:
            start = len(made._done)
            made._done += self._done[start : start + per_piece]
            made._pieces.popleft()
            num_over -= 1
        if not num_over and made._pieces and self._pieces:
            made._pieces[0].adopt(self._pieces[0])
        return made

    @property
    def num_encoded(self) -> int:
        """Codes that are known."""
        return len(self._codes())

    def _write(self, samples: Samples) -> None:
        while len(samples):
            if not self._pieces or self._pieces[-1].is_ended:
                self._pieces.append(_Piece(self.network, self._num_pieces % REFERENCE_BATCH > 0))
                self._num_pieces += 1
            samples = samples[self._pieces[-1].write(samples) :]
            self._listen(self._pieces[-1])

    def _listen(self, piece: _Piece) -> None:
        with own_modes():
            self.num_recomputed += piece.listen()

    def _codes(self) -> list[int]:
        return self._done + (self._pieces[0].codes if self._pieces else [])

    def _release(self) -> None:
        if self._pieces[0].is_ended and not self.ready():
            self._done += self._pieces.popleft().codes


def encode_ready(streams: Sequence[TokenizerStream]) -> None:
    """Encode all blocks that are ready in different streams of one network: a block of each in
    one call, until none is left.
    """
    while waiting := [stream for stream in streams if stream.ready()]:
        network = waiting[0].network
        pieces = [stream._pieces[0] for stream in waiting]
        with own_modes():
            states = encode_blocks(network.weights, network.config, [piece.next_block() for piece in pieces])
            states = [piece.joined(rows) for piece, rows in zip(pieces, states, strict=True)]
            vectors = [piece.pooled(rows) for piece, rows in zip(pieces, states, strict=True)]
            codes = nearest_code(torch.cat(vectors), network.weights["codebook.weight"])
        split = torch.split(codes, [len(rows) for rows in vectors])
        for stream, piece, rows, part in zip(
            waiting, pieces, states, [part.tolist() for part in split], strict=True
        ):
            piece.keep(rows, part)
            stream._release()


class _Piece:
    """30 s of a recording at the shipped size: samples, log-mel features, and what
    its encoded blocks left behind.
    """

    def __init__(self, network: Network, zeros_follow: bool) -> None:
        config = network.config
        self.is_ended = False
        self.codes: list[int] = []
        self.num_encoded = 0  # blocks
        self.num_complete = 0
        self._network = network
        self._config = config
        self._zeros_follow = zeros_follow
        self._max_tokens = math.ceil(config.piece_len / config.token_len)
        self._wave = np.zeros((self._max_tokens + 1) * config.token_len, np.float32)
        self._num_samples = 0
        self._logs = network.filters.new_empty(
            self._max_tokens * config.token_len // config.hop, config.num_mel_bins
        )
        self._num_frames = 0
        self._loudest = network.filters.new_full((), -math.inf)
        self._context = Context(network.weights, config)
        self._states = network.weights["conv1.weight"].new_empty(0, config.hidden_size)

    @property
    def num_missing(self) -> int:
        """Samples until the next block is complete or the piece is full."""
        config = self._config
        return (
            min(config.piece_len, _needed(config, self._num_frames + CONV_STRIDE * config.block_len))
            - self._num_samples
        )

    def write(self, samples: Samples) -> int:
        """Take what fits; the number taken. A full piece is ended."""
        start = self._num_samples
        self._num_samples = min(self._config.piece_len, start + len(samples))
        self._wave[start : self._num_samples] = samples[: self._num_samples - start]
        self.is_ended = self._num_samples == self._config.piece_len
        return self._num_samples - start

    def listen(self) -> int:
        """Features of the blocks that are complete; the number of tokens that a raised floor made void."""
        loudest = self._loudest
        while self._num_frames < (stop := self._next_stop()):
            logs = self._log_frames(self._num_frames, stop)
            self._logs[self._num_frames : stop] = logs
            self._num_frames = stop
            self.num_complete += 1
            loudest = torch.maximum(loudest, logs.max())
        if self.is_ended and self._end_len() > self._padded_len():
            first = self._num_frames  # of the zeros: they reach back over the last samples
            loudest = torch.maximum(
                loudest, self._log_frames(first, first + self._config.token_len // self._config.hop).max()
            )
        return self._raise_floor(loudest)

    def next_block(self) -> AudioBlock:
        """The first block that is not encoded."""
        start = self.num_encoded * self._config.block_len
        stop = min(start + self._config.block_len, self._num_frames // CONV_STRIDE)
        logs = self._logs[max(0, CONV_STRIDE * start - LEFT_FRAMES) : CONV_STRIDE * stop]
        num_positions = math.ceil(self._num_samples / self._config.position_len)
        return AudioBlock(
            floor_frames(logs, self._loudest), start, max(0, min(stop, num_positions) - start), self._context
        )

    def joined(self, states: torch.Tensor) -> torch.Tensor:
        """The states [T, D] of all blocks with that block's."""
        return torch.cat([self._states, states])

    def pooled(self, states: torch.Tensor) -> torch.Tensor:
        """The vectors of the tokens that the block completes, from the states of all."""
        size = self._config.pooling
        return pool(states[len(self.codes) * size : len(states) // size * size], size)

    def keep(self, states: torch.Tensor, codes: list[int]) -> None:
        """The block is encoded: the states of all, its codes."""
        self._states = states
        self.codes += codes
        self.num_encoded += 1

    def adopt(self, other: _Piece) -> None:
        """Take the blocks over that the same piece of another stream encoded from the same features."""
        size = CONV_STRIDE * self._config.block_len
        num_frames = min(self._num_frames, other._num_frames, other.num_encoded * size)
        changed = (
            floor_frames(self._logs[:num_frames], self._loudest)
            != floor_frames(other._logs[:num_frames], other._loudest)
        ).any(1)
        where = changed.nonzero()
        self.num_encoded = (int(where[0]) if len(where) else num_frames) // size
        num_states = self.num_encoded * self._config.block_len
        self._context, self._states = other._context, other._states[:num_states]
        self.codes = other.codes[: num_states // self._config.pooling]

    def _next_stop(self) -> int:
        """The frame that the next complete block ends before; the number of
        frames done if it is not complete.
        """
        config = self._config
        stop = self._num_frames + CONV_STRIDE * config.block_len
        if self.is_ended:
            return min(stop, self._padded_len() // config.hop)
        return stop if self._num_samples >= _needed(config, stop) else self._num_frames

    def _padded_len(self) -> int:
        return math.ceil(self._num_samples / self._config.token_len) * self._config.token_len

    def _end_len(self) -> int:
        """Samples to where the wave is reflected: the original pads a recording's last
        piece to the others' length.
        """
        has_zeros = self._zeros_follow and self._padded_len() < self._max_tokens * self._config.token_len
        return self._padded_len() + has_zeros * self._config.token_len

    def _log_frames(self, start: int, stop: int) -> torch.Tensor:
        """Log-mel values [F, M] of frames, before the floor."""
        hop, n_fft = self._config.hop, self._config.n_fft
        filters = self._network.filters
        place = np.abs(np.arange(start * hop - n_fft // 2, (stop - 1) * hop + n_fft // 2))
        if self.is_ended:
            place = np.where(place < self._end_len(), place, 2 * (self._end_len() - 1) - place)
        segment = torch.from_numpy(self._wave[place]).to(filters.device)
        return log_frames(segment, filters, hop).T

    def _raise_floor(self, loudest: torch.Tensor) -> int:
        """Forget the blocks from the first on that see a changed frame; the number of their tokens."""
        old, self._loudest = self._loudest, loudest
        if not self.num_encoded or loudest is old:
            return 0
        logs = self._logs[: self.num_encoded * CONV_STRIDE * self._config.block_len]
        changed = (floor_frames(logs, old) != floor_frames(logs, loudest)).any(1).nonzero()
        if not len(changed):
            return 0
        position = math.ceil(int(changed[0]) / CONV_STRIDE)  # a position sees its first frame and none after
        self.num_encoded = min(self.num_encoded, position // self._config.block_len)
        start = self.num_encoded * self._config.block_len
        self._states = self._states[:start]
        num_valid = start // self._config.pooling
        num_void = len(self.codes) - num_valid
        del self.codes[num_valid:]
        return num_void


def _needed(config: SpeechTokenizerConfig, stop: int) -> int:
    """Samples of a piece that its frames before `stop` need."""
    return max(stop * config.hop, (stop - 1) * config.hop + config.n_fft // 2)
