"""Flow and vocoder of `steady` streaming: one call for the chunks of many replies, their state in slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from innervoice.codec.glm_voice.chunks import SteadySettings, TokenChunk
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.flow_stream import FlowStream
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.hift_graphs import VocoderGraphs
from innervoice.codec.glm_voice.hift_stream import UNKNOWN_END, HiftStream
from innervoice.codec.glm_voice.steady_reply import SteadyReply
from innervoice.codec.state import SlotTensors
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples
from innervoice_kernels.jit import is_recording
from innervoice_kernels.streams import Shared
from innervoice_kernels.transfer import Arrival, to_device

_FRAME_BUCKET = 32


class FedFrames(NamedTuple):
    """Frames [C, at least n] of a reply on their way to the vocoder, n of them meant.

    is_good: whether they are finite, known on the device alone; None: they are.
    """

    reply: SteadyReply
    frames: Tensor
    n: int
    is_good: Tensor | None = None


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
        self._device = torch.device(device)
        self._on_cpu = self._device.type == "cpu"
        self._tracer = tracer
        self._shipped: Shared[Tensor] | None = None
        self._frames = FlowStream(flow, settings, device)
        self._vocoder = HiftStream(hift, noise)
        self.clock = self._frames.clock
        flow_row, hift_row = self._first_states(settings)
        spare = 0 if self._on_cpu else 1  # a slot for the rows that pad a graph's batch
        self._flow_state = SlotTensors(flow_row, num_slots)
        self._hift_state = SlotTensors(hift_row, num_slots + spare)
        self.vocoder_graphs = (
            VocoderGraphs(self._vocoder, self._hift_state, num_slots, device)
            if self._device.type == "cuda"
            else None
        )

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
        if speaker is None and self._shipped is not None:
            return self._shipped.get()[0]
        vector = self._flow.speaker_vector(speaker)
        if not bool(vector.isfinite().all()):
            raise ValueError("the speaker embedding holds values that are not finite")
        if speaker is None:
            self._shipped = Shared(vector, self._device)
        return vector

    def phases(self, seed: int) -> Tensor:
        """The phases [1, H] at which the harmonics of a reply with this seed begin."""
        return self._vocoder.phases(to_device([np.array([seed], np.int64)], self._device)[0])

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
        numbers = np.array([[reply.seed for reply in replies], places], np.int64)
        tokens, at, (seed, slots) = to_device([*self._frames.numbers(codes, chunks), numbers], self._device)
        speaker = torch.cat([reply.speaker for reply in replies])
        with self._tracer.span("flow", rows=len(replies), frames=max(chunk.window_len for chunk in chunks)):
            mel, after = self._frames(tokens, at, chunks, self._flow_state.take(slots), seed, speaker)
            self._flow_state.put(slots, after)
            is_good = mel.isfinite().all(-1).all(-1)
        fed = [
            FedFrames(reply, frames, chunk.sure_frame - chunk.first_frame, None if self._on_cpu else good)
            for reply, chunk, frames, good in zip(replies, chunks, mel, is_good, strict=True)
        ]
        if not self._on_cpu:  # whoever reads the samples sees it, and this thread need not wait twice
            return list(fed)
        return [
            one if good else ArithmeticError("its mel frames are not finite")
            for one, good in zip(fed, is_good.tolist(), strict=True)
        ]

    def last_frames(self, replies: list[SteadyReply]) -> list[FedFrames]:
        """The frames that finished replies still hold back, and zeros that push
        out what the vocoder is behind.
        """
        tails = self._flow_state.take_one("tail", [reply.place for reply in replies])
        fed = []
        for reply, tail in zip(replies, tails, strict=True):
            held = reply.end_frame - reply.heard
            frames = F.pad(tail[:, :held], (0, self._vocoder.flush_frames))
            fed.append(FedFrames(reply, frames, frames.shape[-1]))
        return fed

    def vocode(self, fed: list[FedFrames], last: bool) -> list[Callable[[], Samples | Exception] | Exception]:
        """Frames of each reply -> what waits for its samples, in one call of the vocoder.

        last: the replies end with them.
        """
        # Pad all rows to the longest, rounded up, so that few shapes occur.
        replies = [part.reply for part in fed]
        size = -(-max(part.n for part in fed) // _FRAME_BUCKET) * _FRAME_BUCKET
        mel = torch.stack([self._row(part, size) for part in fed])
        numbers = np.array(
            [
                (
                    part.reply.place,
                    part.n,
                    part.reply.heard,
                    part.reply.end_frame if last else UNKNOWN_END,
                    part.reply.seed,
                )
                for part in fed
            ],
            np.int64,
        )
        phases = torch.cat([reply.phases for reply in replies])
        with self._tracer.span("vocoder", rows=len(replies), frames=size):
            if self.vocoder_graphs is None:
                samples = self._vocode(mel, numbers, phases, last)
            else:
                samples = self.vocoder_graphs(mel, numbers, phases)
            arrival = Arrival(_marked(samples, fed))
            if is_recording():  # nothing ran
                arrival.wait().zero_()
        return [
            partial(_arrived, arrival, row, self._meant(part.reply, part.n, last))
            for row, part in enumerate(fed)
        ]

    def _vocode(self, mel: Tensor, numbers: NDArray[np.int64], phases: Tensor, last: bool) -> Tensor:
        """mel [B, C, T], numbers [B, 5], phases [B, H] -> samples; the slots go on."""
        places, n, start, end, seed = to_device([np.ascontiguousarray(numbers.T)], self._device)[0]
        # Where no row begins or ends in reach, the vocoder need not clip its signals. On a GPU that saves nothing,
        # and would compile all its kernels twice.
        inner = self._on_cpu and not last and bool((numbers[:, 2] >= self._vocoder.flush_frames).all())
        state = self._hift_state.take(places)
        samples, after = self._vocoder(mel, state, n, start, end, seed, phases=phases, inner=inner)
        self._hift_state.put(places, after)
        return samples

    def _row(self, fed: FedFrames, size: int) -> Tensor:
        """The frames of a row, [C, size]; those behind its own are not looked at."""
        if fed.frames.shape[-1] >= size and not self._on_cpu:
            return fed.frames[:, :size]
        return F.pad(fed.frames[:, : fed.n], (0, size - fed.n))

    def _meant(self, reply: SteadyReply, n: int, last: bool) -> slice:
        """The samples of a call that are the reply's: nothing before its first one, nothing after its end."""
        start = reply.heard * self._vocoder.frame_len - self._vocoder.late
        stop = start + n * self._vocoder.frame_len
        if last:
            stop = min(stop, reply.end_frame * self._vocoder.frame_len)
        return slice(max(0, -start), max(0, stop - start))

    @torch.inference_mode()
    def _first_states(self, settings: SteadySettings) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The state after a chunk of one token, which gives names, shapes and dtypes."""
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        mel = torch.zeros(1, self._flow.config.mel_channels, 1, device=self._device, dtype=torch.float32)
        _, hift = self._vocoder(mel, {}, zero, zero, zero + UNKNOWN_END, zero)
        chunk = TokenChunk(0, 1, replace(settings, steps=1), self.clock)
        tokens, at = to_device(self._frames.numbers([[0]], [chunk]), self._device)
        _, flow = self._frames(tokens, at, [chunk], {}, zero, mel[..., 0])
        return flow, hift


def _arrived(arrival: Arrival, row: int, meant: slice) -> Samples | Exception:
    """The samples of a row of a call that are meant, once they are there."""
    made = arrival.wait()[row].numpy()
    return made[meant].copy() if np.isfinite(made).all() else ArithmeticError("its samples are not finite")


def _marked(samples: Tensor, fed: Sequence[FedFrames]) -> Tensor:
    """Samples [B, T], not numbers where the frames were none."""
    if all(part.is_good is None for part in fed):
        return samples
    good = torch.stack(
        [samples.new_ones((), dtype=torch.bool) if p.is_good is None else p.is_good for p in fed]
    )
    return samples.masked_fill(~good[:, None], torch.nan)
