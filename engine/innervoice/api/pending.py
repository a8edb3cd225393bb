"""PendingItems: messages, utterances and hidden text that wait for a session's next reply."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from innervoice.api.live_audio import LiveEncoder, Prefetcher, UserAudio
from innervoice.api.request_builder import NO_SPEECH_TOKENIZER, new_item_id
from innervoice.codec.audio import joined_peaks, warn_of_silence
from innervoice.model.text.dialogue import DialogueItem, SpokenCodes
from innervoice.runtime.edits import check_new_ids
from innervoice.types import Samples

Prefetch = Callable[[Prefetcher, UserAudio, Sequence[int] | None], None]


class PendingItems:
    """The items that no reply has answered yet, in order, for any thread.

    Its lock is held for moments only, never while the engine works, so no call of it waits. An utterance is an
    item without parts until its codes are taken. prefetch: passes the codes of an utterance to the core.
    """

    def __init__(self, live_encoder: LiveEncoder | None, prefetch: Prefetch) -> None:
        self.injected: list[int] = []
        self._live_encoder = live_encoder
        self._prefetch = prefetch
        self._lock = threading.RLock()
        self._items: list[DialogueItem] = []
        self._audio: dict[str, UserAudio] = {}  # of committed utterances, by item
        self._open: UserAudio | None = None
        self._peaks = np.zeros(1)  # of the channels of the utterance that is being spoken
        self._is_closed = False

    @property
    def items(self) -> list[DialogueItem]:
        """The items, without the utterance that is being spoken."""
        with self._lock:
            return list(self._items)

    @property
    def open_audio(self) -> UserAudio | None:
        """The utterance that is being spoken."""
        return self._open

    def audio_of(self, items: Sequence[DialogueItem]) -> list[UserAudio]:
        """The recordings among items."""
        with self._lock:
            return [self._audio[item.item_id] for item in items if item.item_id in self._audio]

    def is_audio(self, item: DialogueItem) -> bool:
        """Whether an item is an utterance."""
        return item.item_id in self._audio

    def push(self, samples: Samples, rate: int, peaks: np.ndarray) -> None:
        """Add samples [T] to the utterance that is being spoken.

        peaks: of all channels [C] that they come from. Raises ValueError, nothing changed, for another rate
        than before, for a turn too long for a prompt, on a closed session, and without a speech encoder;
        RequestFailed when earlier sound could not be encoded.
        """
        with self._lock:
            self.check_open()
            if self._live_encoder is None:
                raise ValueError(NO_SPEECH_TOKENIZER)
            audio = self._open
            if audio is None:
                audio = self._begin(self._live_encoder, rate)
            elif audio.rate != rate:
                raise ValueError(
                    f"the rate changed from {audio.rate} to {rate} Hz within a turn: commit_audio or clear_audio first"
                )
            try:
                audio.push(samples)
            except BaseException:
                if self._open is None:
                    audio.drop()
                raise
            self._peaks = peaks if self._open is None else joined_peaks(self._peaks, peaks)
            self._open = audio

    def commit(self, drop_ms: float, item_id: str | None) -> str:
        """End the utterance that is being spoken, without its last drop_ms milliseconds -> the handle of its item.

        Raises ValueError, nothing changed.
        """
        with self._lock:
            self.check_open()
            if self._open is None:
                raise ValueError("nothing was pushed: push_audio first")
            item = DialogueItem(item_id or new_item_id(), "user")
            check_new_ids(self._items, [item])
            self._open.end(drop_ms / 1e3)
            warn_of_silence(self._peaks, "the sound that was pushed")
            self._items.append(item)
            self._audio[item.item_id] = self._open
            self._open = None
            return item.item_id

    def clear_audio(self, *, committed: bool) -> None:
        """Forget the utterance that is being spoken, and those that are committed."""
        with self._lock:
            gone = [] if self._open is None else [self._open]
            if committed:
                gone += self._audio.values()
                self._items = [item for item in self._items if item.item_id not in self._audio]
                self._audio = {}
            self._open = None
            for audio in gone:
                audio.drop()

    def append(self, items: Sequence[DialogueItem]) -> None:
        """Add items behind the others. Raises ValueError for a handle that is in use and on a closed session."""
        with self._lock:
            self.check_open()
            check_new_ids(self._items, items)
            self._items += items

    def inject(self, ids: Sequence[int]) -> None:
        """Add hidden text."""
        with self._lock:
            self.injected += ids

    def replace(self, items: Sequence[DialogueItem]) -> None:
        """Put other items in place of all; utterances that are not among them are dropped."""
        with self._lock:
            kept = {item.item_id for item in items}
            for item_id in [item_id for item_id in self._audio if item_id not in kept]:
                self._audio.pop(item_id).drop()
            self._items = list(items)

    def remove(self, items: Sequence[DialogueItem], num_injected: int) -> None:
        """Take items, which a reply answers, and so many ids of hidden text out."""
        with self._lock:
            gone = {item.item_id for item in items}
            self._items = [item for item in self._items if item.item_id not in gone]
            for item_id in gone:
                self._audio.pop(item_id, None)
            del self.injected[:num_injected]

    def resolved(self, items: Sequence[DialogueItem]) -> list[DialogueItem]:
        """The items with the codes of utterances, which may have to be waited for.

        Raises RequestFailed when one could not be encoded, EngineDead, and ValueError for items that are not
        pending any more.
        """
        with self._lock:
            waiting = {item.item_id for item in self._items}
            audio = dict(self._audio)
        if any(item.item_id not in waiting for item in items):
            raise ValueError("the committed audio changed before it was answered: call reply() again")
        return [
            replace(item, parts=(SpokenCodes(tuple(audio[item.item_id].codes())),))
            if item.item_id in audio
            else item
            for item in items
        ]

    def settled_before(self, audio: UserAudio) -> list[DialogueItem] | None:
        """The items before an utterance that is being spoken, None: one of them is still being encoded."""
        with self._lock:
            if audio is not self._open or not all(one.is_settled for one in self._audio.values()):
                return None
            return self.resolved(self._items)

    def copy_to(self, other: PendingItems) -> None:
        """Put copies into another session's; an utterance that is being spoken goes on in both."""
        with self._lock:
            other.injected = list(self.injected)
            other._items, other._audio = list(self._items), dict(self._audio)
            if self._open is not None:
                other._open = self._copy_open(self._open, other)
                other._peaks = self._peaks

    def close(self) -> None:
        """Take no more, and forget all sound."""
        with self._lock:
            self._is_closed = True
            self.clear_audio(committed=True)

    def check_open(self) -> None:
        """Raise ValueError on a closed session."""
        if self._is_closed:
            raise ValueError("the session is closed: open a new one, or restore it from an export")

    def _begin(self, encoder: LiveEncoder, rate: int) -> UserAudio:
        made: list[UserAudio] = []
        made.append(encoder.open(rate, lambda core, codes: self._prefetch(core, made[0], codes)))
        return made[0]

    def _copy_open(self, audio: UserAudio, other: PendingItems) -> UserAudio:
        made: list[UserAudio] = []
        made.append(audio.copy(lambda core, codes: other._prefetch(core, made[0], codes)))
        return made[0]
