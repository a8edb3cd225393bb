"""Flow and vocoder of `steady` streaming: one call for the chunks of many replies, their state in slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.glm_voice.chunks import SteadySettings, TokenChunk
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.flow_stream import FlowStream
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.hift_stream import UNKNOWN_END, HiftStream
from innervoice.codec.glm_voice.steady_reply import SteadyReply
from innervoice.codec.state import SlotTensors
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples

_FRAME_BUCKET = 32


class FedFrames(NamedTuple):
    """Frames [C, at least n] of a reply on their way to the vocoder, n of them meant."""

    reply: SteadyReply
    frames: Tensor
    n: int


class SteadyNetworks:
    """Both networks with the streaming state of num_slots replies.

    A call of either takes any replies, each once.
    """

    def __init__(
        self,
        flow: Flow,
        hift: Hift,
        settings: SteadySettings,
        *,
        num_slots: int,
        noise: bool,
        device: torch.device | str,
        tracer: Tracer,
    ) -> None:
        self._flow = flow
        self._device = device
        self._tracer = tracer
        self._frames = FlowStream(flow, settings, device)
        self._vocoder = HiftStream(hift, noise)
        self.clock = self._frames.clock
        flow_row, hift_row = self._first_states(settings)
        self._flow_state = SlotTensors(flow_row, num_slots)
        self._hift_state = SlotTensors(hift_row, num_slots)

    @property
    def slot_bytes(self) -> int:
        """Bytes of streaming state a slot."""
        return self._flow_state.num_bytes + self._hift_state.num_bytes

    def reset(self, place: int) -> None:
        """Put a slot into the state before the first chunk."""
        self._flow_state.reset(place)
        self._hift_state.reset(place)

    def copy(self, place: int, target: int) -> None:
        """Make the target slot's state that of the first."""
        self._flow_state.copy(place, target)
        self._hift_state.copy(place, target)

    def export(self, place: int) -> dict[str, Tensor]:
        """A slot's state by name, on the CPU."""
        flow, hift = self._flow_state.export(place), self._hift_state.export(place)
        return {f"flow.{name}": value for name, value in flow.items()} | {
            f"hift.{name}": value for name, value in hift.items()
        }

    def restore(self, place: int, exported: Mapping[str, Tensor]) -> None:
        """Write what `export` gave. Raises ValueError when it is of another decoder."""
        for part, slots in (("flow.", self._flow_state), ("hift.", self._hift_state)):
            own = {k.removeprefix(part): v for k, v in exported.items() if k.startswith(part)}
            slots.restore(place, own)

    @torch.inference_mode()
    def speaker_vector(self, speaker: Tensor | None) -> Tensor:
        """An x-vector [1, 192] -> [1, C].

        Raises ValueError for another shape and for values that are not finite.
        """
        vector = self._flow.speaker_vector(speaker)
        if not bool(vector.isfinite().all()):
            raise ValueError("the speaker embedding holds values that are not finite")
        return vector

    def phases(self, seed: int) -> Tensor:
        """The phases [1, H] at which the harmonics of a reply with this seed begin."""
        return self._vocoder.phases(torch.tensor([seed], device=self._device, dtype=torch.int64))

    def next_frames(self, replies: list[SteadyReply]) -> list[FedFrames | Exception]:
        """Decode a chunk of each reply to mel frames, in one call of the flow; the replies'
        chunks are of one padded length.
        """
        chunks = [chunk for chunk in (reply.chunk for reply in replies) if chunk is not None]
        places = [reply.place for reply in replies]
        codes = [
            reply.codes[: chunk.end - chunk.begin // reply.block_size * reply.block_size]
            for reply, chunk in zip(replies, chunks, strict=True)
        ]
        seed = torch.tensor([reply.seed for reply in replies], device=self._device, dtype=torch.int64)
        speaker = torch.cat([reply.speaker for reply in replies])
        with self._tracer.span("flow", rows=len(replies), frames=max(chunk.window_len for chunk in chunks)):
            mel, after = self._frames(codes, chunks, self._flow_state.take(places), seed, speaker)
            self._flow_state.put(places, after)
            is_good = mel.isfinite().all(-1).all(-1).tolist()
        return [
            FedFrames(reply, frames, chunk.sure_frame - chunk.first_frame)
            if good
            else ArithmeticError("its mel frames are not finite")
            for reply, chunk, frames, good in zip(replies, chunks, mel, is_good, strict=True)
        ]

    def last_frames(self, replies: list[SteadyReply]) -> list[FedFrames]:
        """The frames that finished replies still hold back, and zeros that push
        out what the vocoder is behind.
        """
        tails = self._flow_state.take([reply.place for reply in replies])["tail"]
        fed = []
        for reply, tail in zip(replies, tails, strict=True):
            held = reply.end_frame - reply.heard
            frames = F.pad(tail[:, :held], (0, self._vocoder.flush_frames))
            fed.append(FedFrames(reply, frames, frames.shape[-1]))
        return fed

    def vocode(self, fed: list[FedFrames], last: bool) -> list[Samples | Exception]:
        """Frames of each reply -> its samples, in one call of the vocoder.

        last: the replies end with them.
        """
        # Pad all rows to the longest, rounded up, so that few shapes occur.
        replies = [reply for reply, _, _ in fed]
        size = -(-max(n for _, _, n in fed) // _FRAME_BUCKET) * _FRAME_BUCKET
        mel = torch.stack([F.pad(frames[:, :n], (0, size - n)) for _, frames, n in fed])
        places = [reply.place for reply in replies]
        numbers = (
            [n for _, _, n in fed],
            [reply.heard for reply in replies],
            [reply.end_frame if last else UNKNOWN_END for reply in replies],
            [reply.seed for reply in replies],
        )
        n, start, end, seed = torch.tensor(numbers, device=self._device, dtype=torch.int64)
        phases = torch.cat([reply.phases for reply in replies])
        # Where no row begins or ends in reach, the vocoder need not clip its signals.
        inner = not last and all(reply.heard >= self._vocoder.flush_frames for reply in replies)
        with self._tracer.span("vocoder", rows=len(replies), frames=size):
            state = self._hift_state.take(places)
            samples, after = self._vocoder(mel, state, n, start, end, seed, phases=phases, inner=inner)
            self._hift_state.put(places, after)
            made = samples.cpu().numpy()
        good = np.isfinite(made).all(-1)
        return [
            self._cut(row, reply, count, last) if is_good else ArithmeticError("its samples are not finite")
            for row, (reply, _, count), is_good in zip(made, fed, good, strict=True)
        ]

    def _cut(self, samples: Samples, reply: SteadyReply, n: int, last: bool) -> Samples:
        """The samples of a call that are the reply's: nothing before its first one, nothing after its end."""
        start = reply.heard * self._vocoder.frame_len - self._vocoder.late
        stop = start + n * self._vocoder.frame_len
        if last:
            stop = min(stop, reply.end_frame * self._vocoder.frame_len)
        return samples[max(0, -start) : max(0, stop - start)].copy()

    @torch.inference_mode()
    def _first_states(self, settings: SteadySettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The state after a chunk of one token, which gives names, shapes and dtypes."""
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        mel = torch.zeros(1, self._flow.config.mel_channels, 1, device=self._device, dtype=torch.float32)
        _, hift = self._vocoder(mel, {}, zero, zero, zero + UNKNOWN_END, zero)
        chunk = TokenChunk(0, 1, replace(settings, steps=1), self.clock)
        _, flow = self._frames([[0]], [chunk], {}, zero, mel[..., 0])
        return flow, hift
