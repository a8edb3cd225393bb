"""Calls of the vocoder over slots, replayed from CUDA graphs: one for a number of rows and frames."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from innervoice.codec.call_graphs import CallGraphs, CallSize
from innervoice.codec.glm_voice.hift_stream import UNKNOWN_END, HiftStream
from innervoice.codec.state import SlotTensors
from innervoice_kernels.graphs import Replay
from innervoice_kernels.transfer import to_device

NUMBERS = 5  # of a row: its slot, frames, frames before, end, seed


class VocoderGraphs:
    """The vocoder with the state of its slots. spare: a slot for rows that only pad. capture: as for CallGraphs."""

    def __init__(
        self,
        vocoder: HiftStream,
        slots: SlotTensors,
        spare: int,
        device: torch.device | str,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        self._vocoder = vocoder
        self._slots = slots
        self._idle = (spare, 0, 0, UNKNOWN_END, 0)
        self._device = device
        self.graphs = CallGraphs[_VocoderCall]("calls of the vocoder", device, capture)

    def __call__(self, mel: Tensor, numbers: NDArray[np.int64], phases: Tensor) -> Tensor:
        """mel [B, C, T] float32, numbers [B, 5], phases [B, H] -> samples [B, T * frame_len]; the slots go on.

        Without a graph of the size, what the vocoder does is launched one by one.
        """
        rows, channels, frames = mel.shape

        def make(size: CallSize) -> _VocoderCall:
            idle = self._numbers(numbers[:0], size.rows)
            blank = mel.new_zeros(size.rows, channels, size.length)
            return _VocoderCall(
                self._vocoder, self._slots, blank, idle, phases.new_zeros(size.rows, phases.shape[1])
            )

        call = self.graphs.find(CallSize(rows, frames, channels), make)
        if call is None:
            return _run(self._vocoder, self._slots, mel, self._numbers(numbers, rows), phases)
        most, _, longest = call.mel.shape
        call.mel.copy_(F.pad(mel, (0, longest - frames, 0, 0, 0, most - rows)))
        call.phases.copy_(F.pad(phases, (0, 0, 0, most - rows)))
        call.numbers.copy_(self._numbers(numbers, most))
        call.replay()
        return call.samples[:rows, : frames * self._vocoder.frame_len]

    def _numbers(self, numbers: NDArray[np.int64], rows: int) -> Tensor:
        """The numbers of so many rows by column, [5, B], on the device."""
        padded = [*numbers.tolist(), *[self._idle] * (rows - len(numbers))]
        return to_device([np.ascontiguousarray(np.array(padded, np.int64).T)], self._device)[0]


class _VocoderCall:
    """A call's inputs and samples where a graph finds them."""

    def __init__(
        self, vocoder: HiftStream, slots: SlotTensors, mel: Tensor, numbers: Tensor, phases: Tensor
    ) -> None:
        self._vocoder = vocoder
        self._slots = slots
        self.mel = mel
        self.numbers = numbers
        self.phases = phases
        self.samples = mel.new_zeros(len(mel), mel.shape[2] * vocoder.frame_len)
        self.replay: Replay = lambda: None

    @torch.inference_mode()
    def run(self) -> None:
        """Make the call; a graph captures this."""
        self.samples.copy_(_run(self._vocoder, self._slots, self.mel, self.numbers, self.phases))


def _run(vocoder: HiftStream, slots: SlotTensors, mel: Tensor, numbers: Tensor, phases: Tensor) -> Tensor:
    places, n, start, end, seed = numbers
    samples, after = vocoder(mel, slots.take(places), n, start, end, seed, phases=phases)
    slots.put(places, after)
    return samples
