"""`Codec`: a residual-VQ codec by itself, for whole sounds and streams."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal, overload

import numpy as np
import torch

from innervoice.checkpoint.codecs import ResidualConfig
from innervoice.codec.audio import read_channels, resample
from innervoice.codec.modes import own_modes
from innervoice.codec.residual_vq.codes import Codes, Grid, joined
from innervoice.codec.residual_vq.families import read_codec
from innervoice.codec.residual_vq.slot_stream import (
    DecoderHalf,
    DecodeStream,
    EncoderHalf,
    EncodeStream,
    StreamPlace,
)
from innervoice.codec.residual_vq.weights import open_weights
from innervoice.fields import MOST_INT32, MOST_INT64, Limits, Positive, checked, shown
from innervoice.types import Audio, AudioIn, Samples

NumCodebooks = Annotated[int | None, Limits(1, MOST_INT32)]
NumSlots = Annotated[int, Limits(1, 2**16)]
ChunkSeconds = Annotated[float, Limits(above=0, most=86400.0, unit="s")]
Progress = Callable[[float], None]

OFFLINE_S = 8.0
"""Seconds that a whole sound is cut into, so that its length bounds no tensor."""
STREAM_S = 0.4
"""Seconds that a session brings to a step at most."""

log = logging.getLogger("innervoice")


@dataclass(frozen=True)
class Codec:
    """A codec's two halves.

    Sounds in and out are of `sample_rate` Hz and `channels` channels; codes are `Codes`.
    """

    config: ResidualConfig
    encoder: EncoderHalf | None
    decoder: DecoderHalf | None
    dtype: torch.dtype
    device: torch.device

    @classmethod
    @checked
    def from_pretrained(
        cls,
        directory: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        load_format: Literal["auto", "dummy"] = "auto",
    ) -> Codec:
        """Load a directory with config.json and weights: model.safetensors or, of SNAC, pytorch_model.bin.

        "dummy" takes random weights and needs config.json alone. Raises FileNotFoundError, ValueError.
        """
        try:
            device = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device is {device!r}: use cpu, cuda or cuda:N") from None
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}: use torch.float32, torch.bfloat16 or torch.float16")
        family, config = read_codec(directory)
        weights = open_weights(Path(directory), load_format, dtype, device)
        with own_modes():
            encoder = family.load_encoder(weights, config)
            decoder = family.load_decoder(weights, config)
        return cls(config, encoder, decoder, dtype, device)

    @property
    def kind(self) -> str:
        """mimi, encodec, dac or snac."""
        return self.config.kind

    @property
    def sample_rate(self) -> int:
        """The sample rate in Hz."""
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        """1, or 2 for stereo."""
        return self.config.channels

    @property
    def num_codebooks(self) -> int:
        """Codebooks that the checkpoint has."""
        return self.config.num_codebooks

    @property
    def frame_len(self) -> int:
        """Samples a frame; a frame is a column of codes."""
        return self.config.frame_len

    @checked
    def codebooks_of(self, kbps: Positive) -> int:
        """The number of codebooks that a bandwidth of EnCodec takes.

        Raises ValueError for other codecs and bandwidths.
        """
        return self.config.codebooks_of(kbps)

    @overload
    def encode(
        self, audio: AudioIn, *, num_codebooks: int | None = None, progress: Progress | None = None
    ) -> Codes: ...
    @overload
    def encode(
        self, audio: list[AudioIn], *, num_codebooks: int | None = None, progress: Progress | None = None
    ) -> list[Codes]: ...
    @checked
    def encode(
        self,
        audio: AudioIn | list[AudioIn],
        *,
        num_codebooks: NumCodebooks = None,
        progress: Progress | None = None,
    ) -> Codes | list[Codes]:
        """One sound or a list of them, encoded side by side. num_codebooks None: all.

        A sound of another rate is resampled, and a log line says so once. progress: called with the share
        that is done. Raises FileNotFoundError, or ValueError for what holds no usable sound.
        """
        if isinstance(audio, list):
            sounds = [self._samples(one) for one in audio]
            return self._encode(sounds, num_codebooks, progress)
        return self._encode([self._samples(audio)], num_codebooks, progress)[0]

    @overload
    def decode(self, codes: Codes, *, progress: Progress | None = None) -> Audio: ...
    @overload
    def decode(self, codes: list[Codes], *, progress: Progress | None = None) -> list[Audio]: ...
    @checked
    def decode(self, codes: Codes | list[Codes], *, progress: Progress | None = None) -> Audio | list[Audio]:
        """One sound's codes or a list, decoded side by side; stereo samples are [n, 2].

        Raises ValueError for codes of another codec, out of range, or of a wrong number of codebooks.
        """
        if isinstance(codes, Codes):
            return self._decode([codes], progress)[0]
        for one in codes:
            if not isinstance(one, Codes):
                raise ValueError(f"codes holds {shown(one)}: use a list of Codes")
        return self._decode(codes, progress)

    @checked
    def stream_encode(
        self, num_slots: NumSlots = 1, *, num_codebooks: NumCodebooks = None, chunk_s: ChunkSeconds = STREAM_S
    ) -> EncodeStream:
        """Open a stream of sessions that encode: open, push, finish, step.

        chunk_s: most seconds of a session in a step.
        """
        num = self._checked_number(num_codebooks)
        if self.encoder is None:
            raise ValueError("the checkpoint has no encoder: load one that has both halves")
        return self.encoder.stream(self._place(num_slots, chunk_s, num_codebooks=num))

    @checked
    def stream_decode(
        self,
        num_slots: NumSlots = 1,
        *,
        chunk_s: ChunkSeconds = STREAM_S,
        seed: Annotated[int, Limits(0, MOST_INT64)] = 0,
    ) -> DecodeStream:
        """Open a stream of sessions that decode: open, push, finish, step. seed: of SNAC's noise."""
        if self.decoder is None:
            raise ValueError("the checkpoint has no decoder: load one that has both halves")
        return self.decoder.stream(self._place(num_slots, chunk_s, seed=seed))

    def _place(self, num_slots: int, chunk_s: float, *, num_codebooks: int = 0, seed: int = 0) -> StreamPlace:
        config = self.config
        grid = Grid(
            config.kind,
            config.codebook_size,
            config.code_strides,
            all_needed=config.needs_all_codebooks,
            chunk_frames=config.frames_per_scale,
        )
        return StreamPlace(
            num_slots=num_slots,
            device=self.device,
            dtype=self.dtype,
            channels=self.channels,
            grid=grid,
            max_frames=self._frames(chunk_s),
            num_codebooks=num_codebooks,
            seed=seed,
        )

    def _frames(self, seconds: float) -> int:
        """Whole blocks of frames, at least one."""
        block = self.config.block_frames
        return max(1, round(seconds * self.sample_rate / self.frame_len / block)) * block

    def _checked_number(self, num: int | None) -> int:
        """Raises ValueError for a number of codebooks that cannot be encoded."""
        most = self.num_codebooks
        least = self.config.least_codebooks
        if num is not None and not least <= num <= most:
            raise ValueError(
                f"num_codebooks is {num}, {self.kind} has {f'{least} to {most}' if least < most else most}"
            )
        return most if num is None else num

    def _samples(self, audio: AudioIn) -> Samples:
        """[n, C] at the codec's rate."""
        samples, rate = read_channels(audio)
        if rate != self.sample_rate:
            log.info("sound of %d Hz is resampled to the %d Hz of %s", rate, self.sample_rate, self.kind)
            samples = np.stack([resample(one, rate, self.sample_rate) for one in samples.T], 1)
        found = samples.shape[1]
        if found == self.channels:
            return samples
        if found == 1:
            return samples.repeat(self.channels, 1)
        if self.channels == 1:
            raise ValueError(
                f"the sound has {found} channels and {self.kind} at {self.sample_rate} Hz is mono: "
                "mix it to one channel"
            )
        raise ValueError(
            f"the sound has {found} channels, {self.kind} takes 1 or {self.channels}: give it those"
        )

    def _encode(
        self, sounds: Sequence[Samples], num_codebooks: int | None, progress: Progress | None
    ) -> list[Codes]:
        if not sounds:
            return []
        stream = self.stream_encode(len(sounds), num_codebooks=num_codebooks, chunk_s=OFFLINE_S)
        slots = [stream.open() for _ in sounds]
        for slot, samples in zip(slots, sounds, strict=True):
            stream.push(slot, samples)
            stream.finish(slot)
        parts: list[list[Codes]] = [[] for _ in sounds]
        done, total = 0, max(1, sum(map(len, sounds)))
        while pieces := stream.step():
            for piece in pieces:
                assert piece.codes is not None
                parts[piece.slot.place].append(piece.codes)
                done += len(piece.codes.ids[-1]) * self.frame_len
            if progress is not None:
                progress(min(1.0, done / total))
        return [joined(self.kind, own, len(samples)) for own, samples in zip(parts, sounds, strict=True)]

    def _decode(self, codes: Sequence[Codes], progress: Progress | None) -> list[Audio]:
        if not codes:
            return []
        stream = self.stream_decode(len(codes), chunk_s=OFFLINE_S)
        slots = [stream.open() for _ in codes]
        total = max(1, sum(len(one.ids[-1]) if one.ids else 0 for one in codes) * self.frame_len)
        for slot, one in zip(slots, codes, strict=True):
            stream.push(slot, one)
            stream.finish(slot)
        parts: list[list[Samples]] = [[] for _ in codes]
        done = 0
        while pieces := stream.step():
            for piece in pieces:
                assert piece.samples is not None
                parts[piece.slot.place].append(piece.samples)
                done += len(piece.samples)
            if progress is not None:
                progress(min(1.0, done / total))
        whole = [np.concatenate(own) for own in parts]
        return [
            Audio(samples[: one.num_samples], self.sample_rate)
            for samples, one in zip(whole, codes, strict=True)
        ]
