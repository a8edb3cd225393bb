"""`steady` streaming: many replies at once, each in a slot, cut at fixed token indices whatever the pattern of pushes.

A step decodes one chunk of every reply that has one: one call of the flow for all rows of a padded length, one of the vocoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.glm_voice.chunks import Chunk, SteadySettings, next_border
from innervoice.codec.glm_voice.flow import NOISE_SEED, Flow
from innervoice.codec.glm_voice.flow_stream import FlowStream
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.hift_stream import UNKNOWN_END, HiftStream
from innervoice.codec.state import Slot, Slots
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples
from innervoice_kernels.lanes import Lanes

_FRAME_BUCKET = 32
_T = TypeVar("_T")
_U = TypeVar("_U")


class Sound(NamedTuple):
    """What a step made of a reply; last: nothing follows. error: a sentence instead of samples; the reply is broken."""

    slot: Slot
    samples: Samples
    last: bool
    error: str | None = None


@dataclass
class _Reply:
    """codes: tokens from the open block on; begin: tokens decoded; heard: frames given to the vocoder."""

    slot: Slot
    seed: int
    phases: Tensor
    speaker: Tensor
    codes: list[int] = field(default_factory=list)
    num_codes: int = 0
    begin: int = 0
    heard: int = 0
    finished: bool = False
    done: bool = False
    error: str | None = None


class _Fed(NamedTuple):
    """Frames [C, at least n] of a reply on their way to the vocoder, n of them meant."""

    reply: _Reply
    frames: Tensor
    n: int


class SteadyDecoder:
    """A flow and a vocoder with num_slots slots. rows_at_once: rows that share a call of the networks, None: all.

    With 1, a reply's samples are the same bit by bit whoever speaks beside it, and on a CPU replies are made side by side, a
    thread each; with more, as far as matrix products are.
    """

    def __init__(
        self,
        flow: Flow,
        hift: Hift,
        settings: SteadySettings | None = None,
        *,
        num_slots: int = 64,
        rows_at_once: int | None = None,
        noise: bool = True,
        device: torch.device | str = "cpu",
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings or SteadySettings()
        self._flow, self._device, self._tracer = flow, device, tracer or Tracer()
        self._frames = FlowStream(flow, self.settings, device)
        self._vocoder = HiftStream(hift, noise)
        self._rows_at_once, self._lanes = rows_at_once, Lanes()
        self._replies: dict[int, _Reply] = {}
        self._num_opened, self.num_slots = 0, num_slots
        self._flow_state, self._hift_state = (Slots(row, num_slots) for row in self._first_states())

    @property
    def slot_bytes(self) -> int:
        """Bytes of streaming state a slot."""
        return self._flow_state.num_bytes + self._hift_state.num_bytes

    def open(self, *, seed: int = NOISE_SEED, speaker: Tensor | None = None) -> Slot:
        """Begin a reply. seed: of its noise; speaker: an x-vector [1, 192]. Raises ValueError when all slots are taken."""
        with torch.inference_mode():
            vector = self._flow.speaker_vector(speaker)
        if not bool(vector.isfinite().all()):
            raise ValueError("the speaker embedding holds values that are not finite")
        slot = self._free_slot()
        self._flow_state.reset(slot.place)
        self._hift_state.reset(slot.place)
        self._replies[slot.place] = _Reply(slot, seed, self._phases(seed), vector)
        return slot

    def push(self, slot: Slot, codes: Sequence[int]) -> None:
        """Codes arrived, known to be in range. Raises ValueError for a released, finished or broken reply."""
        reply = self._unfinished(slot)
        reply.codes.extend(codes)
        reply.num_codes += len(codes)

    def finish(self, slot: Slot) -> None:
        """No more codes will come. Raises ValueError for a released, finished or broken reply."""
        self._unfinished(slot).finished = True

    def is_finished(self, slot: Slot) -> bool:
        """Whether `finish` was called. Raises ValueError for a released slot."""
        return self._reply(slot).finished

    def close(self, slot: Slot) -> None:
        """Release a slot, whatever its reply's state. Raises ValueError when it is released already."""
        self._reply(slot)
        del self._replies[slot.place]

    def fork(self, slot: Slot) -> Slot:
        """A second reply that goes on from where this one is. Raises ValueError when it is released or no slot is free."""
        reply, twin = self._reply(slot), self._free_slot()
        self._flow_state.copy(slot.place, twin.place)
        self._hift_state.copy(slot.place, twin.place)
        self._replies[twin.place] = replace(reply, slot=twin, codes=list(reply.codes))
        return twin

    def export(self, slot: Slot) -> dict[str, Tensor]:
        """Everything about a reply, as tensors on the CPU. Raises ValueError when the slot is released or the reply broken."""
        reply = self._reply(slot)
        if reply.error is not None:
            raise ValueError(reply.error)
        numbers = (reply.seed, reply.num_codes, reply.begin, reply.heard, reply.finished, reply.done)
        host = {"numbers": torch.tensor(numbers), "codes": torch.tensor(reply.codes, dtype=torch.int64)}
        host |= {"speaker": reply.speaker.cpu(), "settings": self._settings_tensor()}
        named = {f"flow.{name}": value for name, value in self._flow_state.export(slot.place).items()}
        return (
            host
            | named
            | {f"hift.{name}": value for name, value in self._hift_state.export(slot.place).items()}
        )

    def restore(self, exported: dict[str, Tensor]) -> Slot:
        """A reply that `export` gave, here or in another decoder of the same weights and settings. Raises ValueError."""
        settings = exported.get("settings")
        if settings is None or not torch.equal(settings, self._settings_tensor()):
            raise ValueError(
                "the reply was exported with other settings of steady streaming: restore it where they are the same"
            )
        slot = self._free_slot()
        for part, slots in (("flow.", self._flow_state), ("hift.", self._hift_state)):
            slots.restore(
                slot.place, {k.removeprefix(part): v for k, v in exported.items() if k.startswith(part)}
            )
        seed, num_codes, begin, heard, finished, done = exported["numbers"].tolist()
        codes, speaker = exported["codes"].tolist(), exported["speaker"].to(self._device)
        self._replies[slot.place] = _Reply(
            slot,
            seed,
            self._phases(seed),
            speaker,
            codes,
            num_codes,
            begin,
            heard,
            bool(finished),
            bool(done),
        )
        return slot

    def ready(self) -> list[tuple[Slot, int]]:
        """Replies for which `step` would do something, and how many codes of each wait to be decoded."""
        return [
            (reply.slot, reply.num_codes - reply.begin)
            for reply in self._replies.values()
            if self._is_due(reply)
        ]

    @torch.inference_mode()
    def step(self, slots: Collection[Slot] | None = None) -> list[Sound]:
        """Decode all that is ready, of these slots or of all: each reply's sounds in order; `last` once, after `finish`.

        A reply that fails breaks alone: its sound tells the error. Raises ValueError for a released slot, before any decoding.
        """
        replies = (
            list(self._replies.values())
            if slots is None
            else [self._reply(slot) for slot in dict.fromkeys(slots)]
        )
        sounds: list[Sound] = []
        while due := [reply for reply in replies if self._chunk(reply) is not None]:
            sounds += self._side_by_side(self._decode, due)
        return sounds + self._side_by_side(
            self._flush, [reply for reply in replies if reply.finished and not reply.done]
        )

    def _is_due(self, reply: _Reply) -> bool:
        return self._chunk(reply) is not None or (reply.finished and not reply.done)

    def _side_by_side(
        self, make: Callable[[list[_Reply]], list[Sound]], replies: list[_Reply]
    ) -> list[Sound]:
        """Replies that share no call of the networks are made at the same time."""
        if self._rows_at_once != 1:
            return make(replies)
        return [
            sound for made in self._lanes.run([partial(make, [reply]) for reply in replies]) for sound in made
        ]

    def _decode(self, replies: list[_Reply]) -> list[Sound]:
        """One chunk of each."""
        fed: list[_Fed] = []
        sounds: list[Sound] = []
        for group in self._groups(replies):
            for reply, made in zip(group, _each(self._flow_call, group), strict=True):
                if isinstance(made, Exception):
                    sounds.append(self._break(reply, made))
                else:
                    fed.append(made)
                    self._advance(reply)
        return sounds + self._vocode(fed, last=False)

    def _flow_call(self, group: list[_Reply]) -> list[_Fed | Exception]:
        """The next frames of each."""
        chunks = [chunk for chunk in map(self._chunk, group) if chunk is not None]
        slots = [reply.slot.place for reply in group]
        size = self._flow.config.encoder.block_size
        codes = [
            reply.codes[: chunk.end - chunk.begin // size * size]
            for reply, chunk in zip(group, chunks, strict=True)
        ]
        seed = torch.tensor([reply.seed for reply in group], device=self._device)
        speaker = torch.cat([reply.speaker for reply in group])
        with self._tracer.span("flow", rows=len(group), frames=max(chunk.window_len for chunk in chunks)):
            mel, after = self._frames(codes, chunks, self._flow_state.take(slots), seed, speaker)
            self._flow_state.put(slots, after)
            is_good = mel.isfinite().all(-1).all(-1).tolist()
        return [
            _Fed(reply, frames, chunk.sure_frame - chunk.first_frame)
            if good
            else ArithmeticError("its mel frames are not finite")
            for reply, chunk, frames, good in zip(group, chunks, mel, is_good, strict=True)
        ]

    def _flush(self, replies: list[_Reply]) -> list[Sound]:
        """What is left of finished replies: the frames held back, and what the vocoder is behind."""
        silent = [reply for reply in replies if reply.num_codes == 0]
        spoken = [reply for reply in replies if reply.num_codes > 0]
        for reply in replies:
            reply.done = True
        sounds = [Sound(reply.slot, np.zeros(0, np.float32), True) for reply in silent]
        if not spoken:
            return sounds
        tails = self._flow_state.take([reply.slot.place for reply in spoken])["tail"]
        fed = []
        for reply, tail in zip(spoken, tails, strict=True):
            held = self._frames.clock.frames(reply.num_codes) - reply.heard
            frames = F.pad(tail[:, :held], (0, self._vocoder.flush_frames))
            fed.append(_Fed(reply, frames, frames.shape[-1]))
        return sounds + self._vocode(fed, last=True)

    def _vocode(self, fed: list[_Fed], last: bool) -> list[Sound]:
        """Frames of each reply -> its samples."""
        sounds = []
        for group in _pieces([part for part in fed if part.n > 0], self._rows_at_once):
            for (reply, _, n), made in zip(
                group, _each(lambda rows: self._vocoder_call(rows, last), group), strict=True
            ):
                if isinstance(made, Exception):
                    sounds.append(self._break(reply, made))
                else:
                    sounds.append(Sound(reply.slot, self._cut(made, reply, n, last), last))
                    reply.heard += n
        return sounds

    def _vocoder_call(self, fed: list[_Fed], last: bool) -> list[Samples | Exception]:
        replies = [reply for reply, _, _ in fed]
        size = -(-max(n for _, _, n in fed) // _FRAME_BUCKET) * _FRAME_BUCKET
        mel = torch.stack([F.pad(frames[:, :n], (0, size - n)) for _, frames, n in fed])
        slots = [reply.slot.place for reply in replies]
        ends = [self._end(reply) if last else UNKNOWN_END for reply in replies]
        rows = (
            [n for _, _, n in fed],
            [reply.heard for reply in replies],
            ends,
            [reply.seed for reply in replies],
        )
        n, start, end, seed = torch.tensor(rows, device=self._device)
        phases = torch.cat([reply.phases for reply in replies])
        inner = not last and all(reply.heard >= self._vocoder.flush_frames for reply in replies)
        with self._tracer.span("vocoder", rows=len(replies), frames=size):
            samples, after = self._vocoder(
                mel, self._hift_state.take(slots), n, start, end, seed, phases=phases, inner=inner
            )
            self._hift_state.put(slots, after)
            made = samples.cpu().numpy()
        good = np.isfinite(made).all(-1)
        return [
            row if is_good else ArithmeticError("its samples are not finite")
            for row, is_good in zip(made, good, strict=True)
        ]

    def _cut(self, samples: Samples, reply: _Reply, n: int, last: bool) -> Samples:
        """The samples of a call that are the reply's: nothing before its first one, nothing after its end."""
        start = reply.heard * self._vocoder.frame_len - self._vocoder.late
        stop = start + n * self._vocoder.frame_len
        if last:
            stop = min(stop, self._end(reply) * self._vocoder.frame_len)
        return samples[max(0, -start) : max(0, stop - start)].copy()

    def _chunk(self, reply: _Reply) -> Chunk | None:
        """The chunk that can be decoded now."""
        if reply.error is not None or reply.begin == reply.num_codes:
            return None
        border = next_border(reply.begin, self.settings)
        if reply.num_codes < border and not reply.finished:
            return None
        return Chunk(reply.begin, min(border, reply.num_codes), self.settings, self._frames.clock)

    def _advance(self, reply: _Reply) -> None:
        """The reply's chunk is decoded."""
        chunk, size = self._chunk(reply), self._flow.config.encoder.block_size
        assert chunk is not None
        del reply.codes[: chunk.end // size * size - chunk.begin // size * size]
        reply.begin = chunk.end

    def _break(self, reply: _Reply, error: Exception) -> Sound:
        reply.error = f"the reply broke after {reply.begin} codes: {error}; close it and start again"
        reply.finished = reply.done = True
        return Sound(reply.slot, np.zeros(0, np.float32), True, reply.error)

    def _groups(self, replies: list[_Reply]) -> Iterator[list[_Reply]]:
        """Rows of one padded length, at most rows_at_once."""

        def length(reply: _Reply) -> int:
            chunk = self._chunk(reply)
            assert chunk is not None
            return chunk.bucket_len

        for _, group in groupby(sorted(replies, key=length), key=length):
            yield from _pieces(list(group), self._rows_at_once)

    def _phases(self, seed: int) -> Tensor:
        return self._vocoder.phases(torch.tensor([seed], device=self._device))

    def _end(self, reply: _Reply) -> int:
        return self._frames.clock.frames(reply.num_codes)

    def _free_slot(self) -> Slot:
        free = next((index for index in range(self.num_slots) if index not in self._replies), None)
        if free is None:
            raise ValueError(
                f"all {self.num_slots} voice slots are taken: close one, or make room for more with num_slots"
            )
        self._num_opened += 1
        return Slot(free, self._num_opened)

    def _reply(self, slot: Slot) -> _Reply:
        reply = self._replies.get(slot.place)
        if reply is None or reply.slot != slot:
            raise ValueError(f"voice slot {slot.place} was released: open a new one")
        return reply

    def _unfinished(self, slot: Slot) -> _Reply:
        reply = self._reply(slot)
        if reply.error is not None:
            raise ValueError(reply.error)
        if reply.finished:
            raise ValueError(f"the reply in voice slot {slot.place} is finished: it takes no more codes")
        return reply

    def _settings_tensor(self) -> Tensor:
        s = self.settings
        return torch.tensor(
            (
                s.first,
                s.chunk,
                s.look_back,
                s.hold_back,
                s.fade,
                s.encoder_blocks,
                s.steps,
                int(s.show_look_back),
            )
        )

    @torch.inference_mode()
    def _first_states(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a chunk of one token leaves behind: names, shapes and dtypes of the state."""
        zero = torch.zeros(1, dtype=torch.int64, device=self._device)
        mel = torch.zeros(1, self._flow.config.mel_channels, 1, device=self._device)
        _, hift = self._vocoder(mel, {}, zero, zero, zero + UNKNOWN_END, zero)
        chunk = Chunk(0, 1, replace(self.settings, steps=1), self._frames.clock)
        _, flow = self._frames([[0]], [chunk], {}, zero, mel[..., 0])
        return flow, hift


def _pieces(rows: list[_T], size: int | None) -> Iterator[list[_T]]:
    step = size or max(1, len(rows))
    return (rows[i : i + step] for i in range(0, len(rows), step))


def _each(call: Callable[[list[_T]], list[_U | Exception]], rows: list[_T]) -> list[_U | Exception]:
    """What a call makes of its rows. If it fails they are called one by one, so that only those fail that do so alone."""
    try:
        return call(rows)
    except Exception as error:
        if len(rows) == 1:
            return [error]
    return [made for row in rows for made in _each(call, [row])]
