"""`steady` streaming: many replies at once, each in a slot, cut at fixed token indices for any pattern of
pushes.

A step decodes one chunk of every reply that has one: one call of the flow for all rows of a padded length,
one of the vocoder. On a GPU that is queued, and the samples are collected once they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from innervoice.codec.glm_voice.chunks import SteadySettings, next_border, speech_format
from innervoice.codec.glm_voice.flow import NOISE_SEED, Flow
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.steady_networks import FedFrames, SteadyNetworks
from innervoice.codec.glm_voice.steady_reply import SteadyReply
from innervoice.codec.slot_output import SlotOutput
from innervoice.codec.speech_codec import SpokenChunk
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples
from innervoice_kernels.worker_pool import WorkerPool

_T = TypeVar("_T")
_U = TypeVar("_U")


class _Coming(NamedTuple):
    """A chunk whose samples may not be there yet. num_codes: the reply's that were decoded by then."""

    reply: SteadyReply
    samples: Callable[[], Samples | Exception]
    is_last: bool
    num_codes: int


class SteadyOutput(SlotOutput[SteadyReply]):
    """The speech output. rows_at_once: rows that share a call of the networks, None: all.

    With 1, a reply's samples are the same bit by bit whatever replies are beside it, and on a CPU replies are
    made side by side, a thread each; with more, as far as matrix products are.
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
        super().__init__(speech_format(flow.config, hift.config), num_slots, tracer)
        self.settings = settings or SteadySettings()
        self._device = device
        self._block_size = flow.config.encoder.block_size
        self._rows_at_once = rows_at_once
        self._lanes = WorkerPool()
        self._networks = SteadyNetworks(
            flow,
            hift,
            self.settings,
            num_slots=num_slots,
            noise=noise,
            device=device,
            tracer=self._tracer,
        )

    @property
    def slot_bytes(self) -> int:
        """Bytes of streaming state a slot."""
        return self._networks.slot_bytes

    def next_border(self, num_codes: int) -> int:
        """The number of codes that completes the next chunk."""
        return next_border(num_codes, self.settings)

    def open(self, key: str, *, seed: int = NOISE_SEED, speaker: Tensor | None = None) -> None:
        """Begin a reply. seed: of its noise; speaker: an x-vector [1, 192].

        Raises ValueError when the key is in use, all slots are taken, or the x-vector is none.
        """
        self.table.refuse_open(key)
        self.table.add(key, self._begin(key, self.table.free_place(), seed, speaker))

    def fork(self, key: str, new_key: str) -> None:
        """Open a second reply that goes on from where one is.

        Raises ValueError: key unknown, new key in use, no slot.
        """
        self.table.refuse_open(new_key)
        place = self.table.unbroken(key).place
        twin = self.table.fork(key, new_key, self.table.free_place())
        twin.codes = list(twin.codes)
        self._networks.copy(place, twin.place)

    def export(self, key: str) -> bytes:
        """A reply's whole state. Raises ValueError for an unknown or broken key."""
        reply = self.table.unbroken(key)
        numbers = (
            reply.seed,
            reply.num_codes,
            reply.begin,
            reply.heard,
            reply.is_finished,
            reply.is_done,
        )
        host = {
            "numbers": torch.tensor(numbers, dtype=torch.int64, device="cpu"),
            "codes": torch.tensor(reply.codes, dtype=torch.int64, device="cpu"),
            "speaker": reply.speaker.cpu(),
            "settings": _settings_tensor(self.settings),
        }
        return save_tensors(host | self._networks.export(reply.place))

    def restore(self, key: str, exported: bytes) -> None:
        """Open a key with an exported reply, in an output of the same weights and settings.

        Raises ValueError.
        """
        self.table.refuse_open(key)
        try:
            tensors = load_tensors(exported)
        except Exception as error:
            raise ValueError(f"these bytes are not an exported voice: {error}") from error
        settings = tensors.get("settings")
        if settings is None or not torch.equal(settings, _settings_tensor(self.settings)):
            raise ValueError(
                "the reply was exported with other settings of steady streaming: "
                "restore it where they are the same"
            )
        place = self.table.free_place()
        self._networks.restore(place, tensors)
        seed, num_codes, begin, heard, finished, done = tensors["numbers"].tolist()
        reply = self._new_reply(key, place, seed, tensors["speaker"].to(self._device))
        reply.codes = tensors["codes"].tolist()
        reply.num_codes = num_codes
        reply.begin = begin
        reply.heard = heard
        reply.is_finished = bool(finished)
        reply.is_done = bool(done)
        self.table.add(key, reply)

    def _begin(
        self, key: str, place: int, seed: int = NOISE_SEED, speaker: Tensor | None = None
    ) -> SteadyReply:
        vector = self._networks.speaker_vector(speaker)
        self._networks.reset(place)
        return self._new_reply(key, place, seed, vector)

    def _new_reply(self, key: str, place: int, seed: int, speaker: Tensor) -> SteadyReply:
        return SteadyReply(
            key=key,
            place=place,
            settings=self.settings,
            clock=self._networks.clock,
            block_size=self._block_size,
            seed=seed,
            phases=self._networks.phases(seed),
            speaker=speaker,
        )

    def _is_due(self, reply: SteadyReply) -> bool:
        return reply.chunk is not None or (reply.is_finished and not reply.is_done)

    def _step(self, replies: list[SteadyReply]) -> list[SpokenChunk]:
        return self._launch(replies)()

    @torch.inference_mode()
    def _launch(self, replies: list[SteadyReply]) -> Callable[[], list[SpokenChunk]]:
        chunks: list[SpokenChunk | _Coming] = []
        while due := [reply for reply in replies if reply.chunk is not None]:
            chunks += self._side_by_side(self._decode, due)
        ending = [reply for reply in replies if reply.is_finished and not reply.is_done]
        chunks += self._side_by_side(self._flush, ending)
        return lambda: [made for chunk in chunks for made in self._made(chunk)]

    def _made(self, chunk: SpokenChunk | _Coming) -> list[SpokenChunk]:
        """A chunk with its samples; none of a reply that broke or was closed since."""
        if isinstance(chunk, SpokenChunk):
            return [chunk]
        reply, made = chunk.reply, chunk.samples()
        if not self.table.holds(reply) or reply.key in self.errors:
            return []
        if isinstance(made, Exception):
            return [self._failed(reply, chunk.num_codes, made)]
        return [SpokenChunk(reply.key, made, chunk.is_last)]

    def _side_by_side(
        self, make: Callable[[list[SteadyReply]], list[SpokenChunk | _Coming]], replies: list[SteadyReply]
    ) -> list[SpokenChunk | _Coming]:
        """Replies that share no call of the networks are made at the same time."""
        if self._rows_at_once != 1:
            return make(replies)
        made = self._lanes.run([partial(make, [reply]) for reply in replies])
        return [chunk for chunks in made for chunk in chunks]

    def _decode(self, replies: list[SteadyReply]) -> list[SpokenChunk | _Coming]:
        """One chunk of each."""
        fed: list[FedFrames] = []
        chunks: list[SpokenChunk | _Coming] = []
        for group in self._groups(replies):
            for reply, made in zip(group, _each(self._networks.next_frames, group), strict=True):
                if isinstance(made, Exception):
                    chunks.append(self._failed(reply, reply.begin, made))
                else:
                    fed.append(made)
                    reply.advance()
        return chunks + self._vocode(fed, last=False)

    def _flush(self, replies: list[SteadyReply]) -> list[SpokenChunk | _Coming]:
        """Make the rest of finished replies: frames held back, and samples that the vocoder is late by."""
        silent = [reply for reply in replies if reply.num_codes == 0]
        spoken = [reply for reply in replies if reply.num_codes > 0]
        for reply in replies:
            reply.is_done = True
        chunks: list[SpokenChunk | _Coming] = [
            SpokenChunk(reply.key, np.zeros(0, np.float32), True) for reply in silent
        ]
        if not spoken:
            return chunks
        return chunks + self._vocode(self._networks.last_frames(spoken), last=True)

    def _vocode(self, fed: list[FedFrames], last: bool) -> list[SpokenChunk | _Coming]:
        """Frames of each reply -> its samples."""
        chunks: list[SpokenChunk | _Coming] = []
        call = partial(self._networks.vocode, last=last)
        for group in _pieces([part for part in fed if part.n > 0], self._rows_at_once):
            for part, made in zip(group, _each(call, group), strict=True):
                reply = part.reply
                if isinstance(made, Exception):
                    chunks.append(self._failed(reply, reply.begin, made))
                else:
                    chunks.append(_Coming(reply, made, last, reply.begin))
                    reply.heard += part.n
        return chunks

    def _groups(self, replies: list[SteadyReply]) -> Iterator[list[SteadyReply]]:
        """Rows of one padded length, at most rows_at_once."""

        def length(reply: SteadyReply) -> int:
            chunk = reply.chunk
            assert chunk is not None
            return chunk.bucket_len

        for _, group in groupby(sorted(replies, key=length), key=length):
            yield from _pieces(list(group), self._rows_at_once)


def _settings_tensor(settings: SteadySettings) -> Tensor:
    """The settings that two outputs must have in common to exchange replies."""
    return torch.tensor(
        (
            settings.first,
            settings.chunk,
            settings.look_back,
            settings.hold_back,
            settings.fade,
            settings.encoder_blocks,
            settings.steps,
            int(settings.show_look_back),
        ),
        dtype=torch.int64,
        device="cpu",
    )


def _pieces(rows: list[_T], size: int | None) -> Iterator[list[_T]]:
    step = size or max(1, len(rows))
    return (rows[i : i + step] for i in range(0, len(rows), step))


def _each(call: Callable[[list[_T]], list[_U | Exception]], rows: list[_T]) -> list[_U | Exception]:
    """Call for all rows at once.

    If that fails, call for each row by itself, so that only the rows at fault fail.
    """
    try:
        return call(rows)
    except Exception as error:
        if len(rows) == 1:
            return [error]
    return [made for row in rows for made in _each(call, [row])]
