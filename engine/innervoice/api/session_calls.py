"""SessionCalls: a conversation that keeps its pages, so that a turn only costs its new tokens."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Annotated, Any, Self

import numpy as np

from innervoice.api.dialogue import TurnPlanner
from innervoice.api.live_audio import LiveEncoder, Prefetcher, UserAudio
from innervoice.api.pending import PendingItems, Prefetch
from innervoice.api.request_builder import RequestBuilder, RequestOptions
from innervoice.codec.audio import frame_peaks, read_frame
from innervoice.fields import Encodable, NotNegative, checked, shown
from innervoice.model.text.dialogue import DialogueItem
from innervoice.runtime.conversation import Delete, Edit, Insert, Item, ItemHandle, Message, check_item_id
from innervoice.runtime.edits import ItemEdits, check_new_ids
from innervoice.runtime.fork_guard import ForkGuard, all_guarded, refuse_pickling
from innervoice.runtime.interrupt import Behind, Cut
from innervoice.runtime.record import request_line
from innervoice.runtime.request import Request
from innervoice.runtime.session_state import History
from innervoice.runtime.sessions import Sessions
from innervoice.runtime.snapshot import PausedReply, SessionSnapshot
from innervoice.runtime.stoppable_thread import finished_at_exit
from innervoice.runtime.stream import Stream
from innervoice.runtime.worker import Worker
from innervoice.schedule import Schedule, Segment
from innervoice.types import Heard, Ids, Prompt


@dataclass(frozen=True)
class AskedReply:
    """A reply that was asked for: what it answers of the pending items, and what the call itself gave.

    given: None: it answers the pending items alone. sets_system: whether the system text holds from this reply
    on.
    """

    options: RequestOptions
    submitted_s: float
    pending: list[DialogueItem]
    given: list[DialogueItem] | None
    sets_system: bool


@all_guarded
class SessionCalls:
    """The calls of `Session` that threads make. Thread-safe; a context manager."""

    def __init__(
        self,
        worker: Worker,
        live_encoder: LiveEncoder | None,
        requests: RequestBuilder,
        options: RequestOptions,
        model_id: str,
        threads: Executor,
    ) -> None:
        self.session_id = uuid.uuid4().hex
        self.guard = ForkGuard()
        self._lease = worker.find_lease()
        self._worker = worker
        self._live_encoder = live_encoder
        self._requests = requests
        self._options = options
        self._model_id = model_id
        self._threads = threads
        self._planner = TurnPlanner(requests)
        self._lock = threading.RLock()
        self._pending = PendingItems(live_encoder, self._weak_prefetch())
        self._is_open = True

    @classmethod
    def open(
        cls,
        worker: Worker,
        live_encoder: LiveEncoder | None,
        requests: RequestBuilder,
        options: RequestOptions,
        model_id: str,
        threads: Executor,
        snapshot: SessionSnapshot | None = None,
    ) -> Self:
        """Open a new session, or restore a snapshot. Raises OutOfCapacity, ValueError."""
        session = cls(worker, live_encoder, requests, options, model_id, threads)
        worker.call_sessions(lambda sessions: sessions.open(session.session_id, snapshot))
        if snapshot is not None:
            session._pending.inject(snapshot.injected)
            session._pending.append(snapshot.pending)
        return session

    @checked
    def reply(self, prompt: Prompt | list[Message] | None = None, **request: Any) -> Stream:
        """Answer the prompt, or all that is pending: appended messages and committed audio, in order; or go on
        with the reply that a fork or restore left unfinished.

        prompt: one prompt, which leaves committed audio to a later reply, or a list of `Message`, behind what
        is pending; an empty list: the assistant speaks, with nothing to answer if nothing is pending. A reply
        that ends before it begins answers nothing: what was pending is so again. request: as for
        `Engine.stream`; the options of `open_session` are the defaults, and `system` holds from this
        reply on. Raises ValueError for bad input, for a session that is closed or still replying, and for a
        history that the cache does not hold; RequestFailed when the audio could not be encoded.
        """
        asked = self._ask(prompt, request)
        self._wait_for_audio(asked)
        return self._answer(asked)

    def update(self, **request: Any) -> None:
        """Change the defaults of later replies' options; another `system` replaces the one before the history.

        Raises TypeError for an unknown option.
        """
        self._options = self._options.changed(**request)

    @checked
    def append(self, messages: Message | list[Message]) -> list[str]:
        """Add messages to the history without a reply -> the handles of their items; the next reply answers
        them. At any time, also during a reply.

        Raises ValueError for a handle that is in use, bad content, and on a closed session.
        """
        with finished_at_exit(self._worker.stop):
            made = self._requests.items([messages] if isinstance(messages, Message) else messages)
        self._pending.append(made)
        return [item.item_id for item in made]

    def edit(self, *edits: Edit) -> None:
        """Change the history: `Delete`, `Insert`, `Truncate`, in this order, all of them or none.

        What stands before the first change keeps its keys and values. An unfinished reply, of a fork or an
        export, is over then. Raises ValueError for an item that is not there, a handle that is in use, and
        while a reply waits or is in progress.
        """
        with finished_at_exit(self._worker.stop):
            inserted = [
                self._requests.items(list(edit.messages)) if isinstance(edit, Insert) else []
                for edit in edits
            ]
        wrong = [edit for edit in edits if not isinstance(edit, Edit)]
        if wrong:
            raise ValueError(f"an edit is {shown(wrong[0])}: use Delete, Insert or Truncate")
        with self._lock:
            history = self._history()
            items = ItemEdits(
                [*history.items, *self._pending.items],
                history.own,
                history.sizes,
                self._requests.vocabulary.speech or (0, 0),
                lambda played_s: self._worker.call_sessions(lambda sessions: sessions.count_heard(played_s)),
            )
            for edit, new in zip(edits, inserted, strict=True):
                if isinstance(edit, Insert):
                    items.insert(new, edit.after)
                elif isinstance(edit, Delete):
                    items.delete(edit.item_id)
                else:
                    items.truncate(edit)
            kept, pending = items.split()
            kept = [item for item in kept if not item.is_once]
            own = self._planner.rendered(kept, history.own_head, items.own, self._options)
            changed = replace(
                history, items=kept, own=own, head=history.own_head, paused=None, sizes=items.sizes
            )
            self._worker.call_sessions(lambda sessions: sessions.set_history(self.session_id, changed))
            self._pending.replace([item for item in pending if not item.is_once])

    def items(self) -> list[Item]:
        """The messages and replies of the history, then those that wait for a reply; also while it replies."""
        with self._lock:
            pending = self._pending.items  # first: a reply that begins now moves them into the history
            history: History = self._worker.call_sessions(
                lambda sessions: sessions.history(self.session_id, while_busy=True)
            )
        answered = {item.item_id for item in history.items}
        pending = [item for item in pending if item.item_id not in answered]
        shown = [self._planner.shown(item, history) for item in history.items if not item.is_once]
        return [*shown, *(self._planner.shown(item, history, is_pending=True) for item in pending)]

    def push_audio(self, pcm: np.ndarray | bytes | bytearray | memoryview, rate: int) -> None:
        """Add frames of any size while the user speaks: float32 in [-1, 1] or int16, [T] or [T, C]; bytes are
        int16 mono.

        They are encoded as they come, whether a reply is running or not; the call waits for nothing. Of several
        channels the first is heard; commit_audio logs a warning when it is silent and another is not. Raises
        ValueError, nothing changed, for a rate that changes before commit_audio or clear_audio, for samples
        that are no sound, for a turn too long for a prompt and on a closed session; RequestFailed when
        earlier sound could not be encoded: clear_audio and begin again.
        """
        samples = read_frame(pcm, rate)
        self._pending.push(samples, rate, frame_peaks(pcm))

    @checked
    def commit_audio(self, *, drop_ms: NotNegative = 0.0, item_id: ItemHandle | None = None) -> str:
        """End the user's utterance: the next `reply()` answers it, with others that were committed before ->
        the handle of its item.

        drop_ms: sound at its end that is left out, such as the silence by which the end was noticed. item_id:
        a handle of the caller's own. Raises ValueError, nothing changed, when nothing was pushed, and when
        nothing would be left.
        """
        check_item_id(item_id)
        return self._pending.commit(drop_ms, item_id)

    @checked
    def clear_audio(self, *, committed: bool = True) -> None:
        """Forget pushed audio that is not answered yet; committed=False: only the sound since the last
        commit_audio.
        """
        self._pending.clear_audio(committed=committed)

    @checked
    def inject(self, text: Annotated[str, Encodable()]) -> None:
        """Queue a hidden segment, such as a tool's result, that the next reply begins with, word for word."""
        self._requests.check_text(text, "the text to inject")
        ids = self._requests.tokenizer.encode(text)
        if not ids:
            raise ValueError("the text to inject is empty")
        self._pending.inject(ids)

    @checked
    def ack_playback(self, played_ms: NotNegative, *, reply_id: str | None = None) -> None:
        """Report how much of a reply the player has played, from its beginning: of the last reply, or of the
        named one.

        Cumulative. From then on the engine goes by the reports; without any, the reply is taken to play in
        real time from its first sample. A report on an earlier reply of this session is counted and changes
        nothing. Raises ValueError, nothing changed, for a negative time, for more than was sent, and for a
        reply that this session did not make.
        """
        now = self._worker.clock()
        played_s = played_ms / 1e3
        self._worker.call_sessions(
            lambda sessions: sessions.acknowledge(self.session_id, now, played_s, reply_id)
        )

    def heard(self) -> Heard:
        """The part of the last reply that was heard so far, by the player's reports or by the clock; the reply may
        be in progress or over, and nothing is cut. Without a reply, nothing was heard.

        Raises ValueError for a closed session.
        """
        now = self._worker.clock()
        return self._worker.call_sessions(lambda sessions: sessions.heard(self.session_id, now))

    def heard_ms(self) -> float:
        """Milliseconds of the last reply that were heard so far; see `heard`."""
        return self.heard().heard_ms

    @checked
    def interrupt(
        self,
        played_ms: NotNegative | None = None,
        *,
        cut: Cut = "speech",
        reflection: Behind = "drop",
        reply_id: str | None = None,
    ) -> Heard:
        """Stop the reply because the user speaks, and cut the history to the part that was heard -> the part
        that is kept.

        played_ms: the part that was played, None: as acknowledged or assumed. cut "speech": keep up to the
        last speech token that was heard, with the text that had run ahead of it. "transcript": text that was
        not heard yet is removed too (estimate `proportional`), and the tokens behind it are computed again.
        reflection "keep": hidden tokens behind the cut stay. A reply that is over, cancelled or interrupted
        can be interrupted while it plays: a smaller played_ms cuts further, a larger one restores nothing.
        Its stream ends with Done, "interrupted"; unread events are dropped. reply_id: the reply that is meant,
        None: the last; for one that never began, or that another has followed, nothing is cut. Raises
        ValueError, nothing changed, for bad arguments, as `ack_playback`, and in a session that has not replied.
        """
        now = self._worker.clock()
        played_s = None if played_ms is None else played_ms / 1e3
        with self._lock:
            return self._worker.interrupt(
                lambda sessions: sessions.interrupt(self.session_id, now, played_s, cut, reflection, reply_id)
            )

    def fork(self) -> Self:
        """Open a second session with the same history, sharing its pages; a running reply is left unfinished
        in it.

        Raises OutOfCapacity when all sessions are in use.
        """
        with self._lock:
            twin = type(self)(
                self._worker,
                self._live_encoder,
                self._requests,
                self._options,
                self._model_id,
                self._threads,
            )

            def fork(sessions: Sessions) -> None:
                sessions.fork(self.session_id, twin.session_id)
                self._pending.copy_to(twin._pending)  # before a reply that waits begins

            self._worker.call_sessions(fork)
            return twin

    def export(self) -> bytes:
        """Return token ids, kinds, items, cursor and seed for `open_session(restore=)`, without audio that was
        pushed.
        """
        with self._lock:

            def export(sessions: Sessions) -> SessionSnapshot:
                made = sessions.export(self.session_id, self._model_id)
                typed = [item for item in self._pending.items if not self._pending.is_audio(item)]
                return replace(made, injected=list(self._pending.injected), pending=typed)

            return self._worker.call_sessions(export).to_bytes()

    def close(self) -> None:
        """End the session's reply and free its pages; any number of times."""
        self._pending.close()
        self._worker.close_session(self.session_id)
        self._is_open = False

    def __del__(self) -> None:
        # The worker closes it: this may run on any thread, with any locks held.
        if getattr(self, "_is_open", False):
            self._worker.forget(self.session_id, self._pending.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.guard.is_at_home:
            self.close()

    __reduce__ = refuse_pickling

    def _ask(self, prompt: Prompt | list[Message] | None, request: dict[str, Any]) -> AskedReply:
        """Check a call of `reply`, and encode what it gives."""
        submitted_s = self._worker.clock()
        options = self._options.changed(**request)
        with finished_at_exit(self._worker.stop):
            given = None if prompt is None else self._requests.items(prompt)
        pending = self._pending.items
        if prompt is not None and not isinstance(prompt, list):
            pending = [item for item in pending if not self._pending.is_audio(item)]
        return AskedReply(options, submitted_s, pending, given, "system" in request)

    def _wait_for_audio(self, asked: AskedReply) -> None:
        """Wait for the codes of committed audio without the lock, so that the session can be closed meanwhile."""
        self._worker.check_caller()
        for audio in self._pending.audio_of(asked.pending):
            audio.codes()

    def _answer(self, asked: AskedReply) -> Stream:
        """Submit a reply whose audio is encoded."""
        with self._lock:
            history: History = self._worker.call_sessions(
                lambda sessions: sessions.history(self.session_id, tokens=self._planner.reads_words)
            )
            pending = self._pending.resolved(asked.pending)
            if asked.given is None and not pending:
                return self._resume(history.paused, asked)
            new = [*pending, *(asked.given or ())]
            check_new_ids([*history.items, *self._unanswered(asked)], new)
            num_injected = len(self._pending.injected)
            options = self._with_injected(asked.options)
            plan = self._planner.plan_plain(history, new, options)
            if plan is None:
                plan = self._planner.plan(self._history(), new, options)
            turn = replace(plan.turn, on_begun=partial(self._pending.remove, asked.pending, num_injected))
            made = self._requests.request(
                Ids(plan.prompt_ids), options, asked.submitted_s, session_id=self.session_id, turn=turn
            )
            stream = self._submit(made)
            if asked.sets_system:
                self._options = self._options.changed(system=options.system)
            stream.dropped_items = plan.dropped
            if plan.num_dropped:
                self._worker.telemetry.count("dropped_turns", plan.num_dropped)
            return stream

    def _unanswered(self, asked: AskedReply) -> list[DialogueItem]:
        answered = {item.item_id for item in asked.pending}
        return [item for item in self._pending.items if item.item_id not in answered]

    def _history(self) -> History:
        """The history with its tokens. Raises ValueError while the session replies, and for a closed one."""
        return self._worker.call_sessions(lambda sessions: sessions.history(self.session_id))

    def _weak_prefetch(self) -> Prefetch:
        """Return `_prefetch` for the listener, whose thread must not keep the session and its engine alive."""
        find = weakref.WeakMethod(self._prefetch)

        def prefetch(sessions: Prefetcher, audio: UserAudio, codes: Sequence[int] | None) -> None:
            call = find()
            if call is not None:
                call(sessions, audio, codes)

        return prefetch

    def _prefetch(self, sessions: Prefetcher, audio: UserAudio, codes: Sequence[int] | None) -> None:
        """Pass on the beginning of the prompt whose recording is being pushed; on the core's thread."""
        if codes is None:
            sessions.prefetch(self.session_id, ())
            return
        before = self._pending.settled_before(audio)
        if before is None:
            raise ValueError("an utterance before is still being encoded: nothing is prefetched")
        options = self._options
        history = sessions.history(self.session_id, tokens=False)
        if self._planner.is_stale(history, options):  # other instructions: the history is written anew first
            history = self._planner.renewed(sessions.history(self.session_id), options)
            sessions.set_history(self.session_id, history)
        sessions.prefetch(self.session_id, self._planner.head_ids(history, before, codes, options))

    def _resume(self, paused: PausedReply | None, asked: AskedReply) -> Stream:
        if paused is None:
            raise ValueError(
                "there is nothing to reply to: give a prompt, or push_audio and commit_audio first; "
                "an empty list lets the assistant begin"
            )
        options = asked.options.changed(
            schedule=Schedule.from_dict(paused.schedule), sampling=paused.sampling
        )
        made = self._requests.request(None, options, asked.submitted_s, session_id=self.session_id)
        return self._submit(made)

    def _submit(self, request: Request) -> Stream:
        stream = self._worker.submit(request, request.output_rate or self._requests.sample_rate)
        stream.make_record = partial(request_line, request, self._model_id, stream.history)
        return stream

    def _with_injected(self, options: RequestOptions) -> RequestOptions:
        """Put injected text into the schedule as its first segment, in open and close where the model has
        them.
        """
        injected = self._pending.injected
        if not injected:
            return options
        program = self._requests.compile(options.schedule)
        around = program.vocabulary
        ids = [i for i in (around.open, *injected, around.close) if i is not None]
        schedule = program.schedule
        if not schedule.guided:
            raise ValueError("a free reply takes no injected text: use a guided schedule")
        return options.changed(
            schedule=replace(schedule, prologue=(Segment("forced", ids=tuple(ids)), *schedule.prologue))
        )
