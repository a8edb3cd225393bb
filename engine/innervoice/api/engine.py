"""Engine: load a model, answer prompts."""

from __future__ import annotations

import math
import os
import uuid
import weakref
from asyncio import CancelledError, shield, wrap_future
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, cast, overload

import torch

from innervoice.api.engine_lease import EngineLease
from innervoice.api.gc_freeze import FrozenHeap
from innervoice.api.likelihood import Likelihoods, continuation_ids, likelihoods
from innervoice.api.live_audio import LiveEncoder
from innervoice.api.loader import EngineParts, load
from innervoice.api.memory_plan import MemoryPlan
from innervoice.api.options import EngineOptions, keywords_of
from innervoice.api.preparation import Prepared, prepare
from innervoice.api.request_builder import RequestOptions
from innervoice.api.session import Session
from innervoice.fields import AtLeastOne, Limits, checked
from innervoice.files import check_replaceable
from innervoice.runtime.calibration import calibrate
from innervoice.runtime.conversation import Message
from innervoice.runtime.fork_guard import ForkGuard, guarded, refuse_pickling
from innervoice.runtime.probe import Prober
from innervoice.runtime.probing import StatesOf
from innervoice.runtime.record import request_line
from innervoice.runtime.request import Request
from innervoice.runtime.scheduler import Forecast, forecast
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.runtime.stoppable_thread import enough_stack, finished_at_exit, start_pool
from innervoice.runtime.stream import Stream
from innervoice.runtime.worker import Worker
from innervoice.telemetry.prometheus import make_collector
from innervoice.telemetry.stats import Stats, Telemetry
from innervoice.telemetry.trace import Tracer
from innervoice.types import Ids, Prompt, Reply, Sampling, Text
from innervoice_kernels.jit import num_compiled
from innervoice_kernels.native import keep_threads_native, spare_lost_threads, team, torch_threads_here
from innervoice_kernels.streams import lead

if TYPE_CHECKING:
    from prometheus_client.registry import Collector


class Engine:
    """A loaded model that answers prompts.

    Thread-safe; a context manager. Make one with `Engine.from_pretrained`.

    While an engine is open, what the process held when it opened stays out of garbage collection
    (`gc.freeze`). It is open until `close`, or until no reference to it, its sessions and its streams is left;
    then its memory is free. It works in the process that loaded it alone: elsewhere every call raises
    EngineDead.
    """

    def __init__(self, parts: EngineParts, plan: MemoryPlan, options: EngineOptions, tracer: Tracer) -> None:
        self.guard = ForkGuard()
        self._parts: EngineParts | None = parts
        self._model_id = parts.model_id
        self._default_sampling = parts.requests.default_sampling()
        self._plan = plan
        self._tracer = tracer
        self._frozen = FrozenHeap()

        # The worker's thread. Of two threads, those that torch keeps spinning cost native code more than torch gains.
        num_threads = team().num_threads
        is_native = parts.core.runner.is_native
        device = parts.core.runner.device

        def begin() -> None:
            if is_native and num_threads == 2:
                keep_threads_native()
            lead(device)

        self._worker = Worker(
            parts.core,
            telemetry=Telemetry(options.name),
            reader_timeout_s=options.reader_timeout_s,
            begin=begin,
        )

        # The thread that encodes pushed audio, where the model hears speech.
        self._live_encoder: LiveEncoder | None = None
        if parts.requests.speech_tokenizer is not None:
            self._live_encoder = LiveEncoder(
                parts.requests.speech_tokenizer,
                parts.requests.max_model_len,
                self._worker.call_sessions,
                self._worker.telemetry.count,
                partial(torch_threads_here, max(1, num_threads // 2)) if is_native else None,
            )

        # The threads on which sessions' calls run that an event loop makes; each starts when it is needed.
        self._threads = ThreadPoolExecutor(2 * parts.core.max_rows + 2, "innervoice-call")

        # What keeps the threads running; sessions and streams find it by the worker.
        stop = [self._worker.stop, self._frozen.release]
        if self._live_encoder is not None:
            stop.insert(0, self._live_encoder.stop)
        self._lease = EngineLease(stop)
        self._worker.find_lease = weakref.ref(self._lease)

        # Kernels compiled when all were ready, None: not known; counting begins before the first is compiled.
        self._num_compiled: int | None = None
        num_compiled()

    @overload
    @classmethod
    @keywords_of(EngineOptions)
    def from_pretrained(cls) -> Engine: ...
    @overload
    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], options: EngineOptions | None, **changes: Any
    ) -> Engine: ...
    @classmethod
    def from_pretrained(
        cls, model: str | PathLike[str], options: EngineOptions | None = None, **changes: Any
    ) -> Engine:
        """Load a model.

        model: directory of the language model, or the parent of all three parts, or a hub id. options: see
        `EngineOptions`, whose fields may as well be given as keywords. Raises FileNotFoundError, ValueError,
        OutOfCapacity, and TypeError for an option that does not exist.
        """
        if options is not None and not isinstance(options, EngineOptions):
            raise ValueError(
                f"options is {options!r}: use an EngineOptions, or give each option as a keyword"
            )
        options = (options or EngineOptions()).changed(**changes)
        return cls.load(prepare(model, options))

    @classmethod
    def load(cls, prepared: Prepared) -> Engine:
        """Read the weights of a model whose other files have been read; see `from_pretrained`."""
        plan, options, tracer = prepared.plan, prepared.options, Tracer()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        spare_lost_threads()
        engine = cls(load(prepared, tracer), plan, options, tracer)
        if options.warmup or (options.warmup is None and torch.device(plan.device).type == "cuda"):
            engine.warmup()
        engine._frozen.freeze()
        return engine

    @overload
    def generate(self, prompt: Prompt | list[Message], **request: Any) -> Reply: ...
    @overload
    def generate(self, prompt: list[Prompt] | list[list[Message]], **request: Any) -> list[Reply]: ...
    @guarded
    @checked
    def generate(self, prompt: Prompt | list[Any], **request: Any) -> Reply | list[Reply]:
        """Make the whole reply to a prompt or to a dialogue, a list of `Message`; or a list of replies to a list
        of prompts or dialogues.

        request: as for `stream`. Raises the errors of `stream`, and RequestFailed.
        """
        request = {"realtime": False, **request}
        if not isinstance(prompt, list) or (prompt and isinstance(prompt[0], Message)):
            return self.stream(prompt, **request).reply()
        streams = [self.stream(one, **request).bounded(math.inf, math.inf) for one in prompt]
        return [stream.reply() for stream in streams]

    @guarded
    @checked
    def stream(self, prompt: Prompt | list[Message], **request: Any) -> Stream:
        """Validate and submit a request now; read its events with `for` or `async for`.

        A recording is read and encoded before the call returns: within an event loop use `astream`.

        prompt: a path, file bytes or (samples [T] or [T, C], rate in Hz) for speech; Text for typed text; Ids
        for ids as they are; or a list of `Message`, a dialogue that the assistant goes on with (an empty one: the
        assistant begins).

        request, all of it optional:
        - schedule: a Schedule, a preset's name or a .json file. Default: interleaved, or text alone for a
          model without speech.
        - sampling: a Sampling. Default: the checkpoint's own, and at most 2000 new tokens.
        - system: a system prompt in place of the model's own; in a session it holds from this reply on.
        - instructions: a system prompt in place of `system` for this reply alone. Default: none.
        - extra_system: a system message directly before the reply, which a session's history does not
          keep. Default: none.
        - truncation: "disabled" (default): a session's history that leaves no room is refused; "auto": its oldest
          turns are dropped, then unanswered messages, then system messages; the last message stays.
        - retention_ratio: the share of the room that "auto" leaves filled. Default: 0.8.
        - item_id: the handle of the reply's item in a session. Default: the reply's id.
        - template: variables of the chat template by name, such as {"enable_thinking": False}.
        - tools: functions that the model may call, as in OpenAI's chat completions, for a checkpoint that names
          tokens of a call. Default: none.
        - tool_choice: "auto" (default), "none", "required", or {"name": ...} for a call of that function.
        - parallel_tool_calls: whether a reply may have several calls. Default: True.
        - output_rate: of the audio, in Hz. Default: the decoder's own.
        - output_format: "float32" (default) or "int16" samples.
        - feeds: by name, a `Feed` for each that the schedule's fed segments take ids from. Default: none.
        - contexts, fusion: prompts beside the prompt, and the `Fusion` that combines them. Default: none.
        - reflection_caps: run-time caps of the reflection segments, in order.
        - timeout_s: seconds after which the reply ends. Default: no limit.
        - priority: replies of a higher one go first. Default: 0.
        - realtime: True (default): the reply is played while it is made, so it keeps the pace of playback and
          reflects as long as unplayed sound allows. False, as in `generate`: as fast as possible, and
          reflecting as its schedule says.

        Raises ValueError, FileNotFoundError for bad input, TypeError for an unknown option, OutOfCapacity
        when max_waiting replies wait already, EngineDead.
        """
        submitted_s = self._worker.clock()
        self._worker.check_open()
        self.check_health()
        requests = self.parts.requests
        with finished_at_exit(self._worker.stop):
            made = requests.request(prompt, RequestOptions().changed(**request), submitted_s)
        if made.fusion is not None:
            made.fusion.check(1 + len(made.contexts), self.parts.core.max_rows)
        stream = self._worker.submit(made, made.output_rate or requests.sample_rate)
        stream.make_record = partial(request_line, made, self.model_id)
        return stream

    @guarded
    @checked
    def astream(self, prompt: Prompt | list[Message], **request: Any) -> Stream:
        """Do the same as `stream`, for event loops: a recording is read and encoded on a thread, while the loop
        goes on.

        What such a recording is refused for is then raised where the stream is read; options are checked now.
        """
        if isinstance(prompt, Text | Ids):
            return self.stream(prompt, **request)
        submitted_s, reply_id = self._worker.clock(), uuid.uuid4().hex
        self.check_health()
        requests, options = self.parts.requests, RequestOptions().changed(**request)
        requests.program_of(options)
        made: list[Request] = []

        def encode() -> Request:
            made.append(replace(requests.request(prompt, options, submitted_s), reply_id=reply_id))
            return made[0]

        stream = self._worker.submit_later(reply_id, options.output_rate or requests.sample_rate, encode)
        stream.make_record = lambda: request_line(made[0], self.model_id)
        return stream

    @overload
    def logprobs(
        self, prompt: Prompt | list[Message], continuations: Sequence[Text | Ids | str], **request: Any
    ) -> Likelihoods: ...
    @overload
    def logprobs(
        self,
        prompt: list[Prompt] | list[list[Message]],
        continuations: Sequence[Text | Ids | str],
        **request: Any,
    ) -> list[Likelihoods]: ...
    @guarded
    @checked
    def logprobs(
        self, prompt: Prompt | list[Any], continuations: Sequence[Any], **request: Any
    ) -> Likelihoods | list[Likelihoods]:
        """Compute log-probabilities of given continuations of a prompt, a dialogue, or each of a list: one prefill, no draw.

        continuations: text or ids. They are those of the model itself, at temperature 1, over the whole vocabulary,
        whatever a schedule would mask. Prompts that begin alike, and the continuations of one, share pages. request:
        `system`, `instructions`, `template`, `tools` as for `stream`. Raises its errors, and RequestFailed for NaN.
        """
        self._worker.check_open()
        requests, options = self.parts.requests, RequestOptions().changed(**request)
        ids = continuation_ids(requests, continuations)
        is_many = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], Message))
        prompts: list[Any] = list(cast(list[Any], prompt)) if is_many else [prompt]
        with finished_at_exit(self._worker.stop):
            made = [requests.request(one, options, 0.0).prompt_ids for one in prompts]

        found = likelihoods(self.prober(), made, ids, requests.max_model_len)
        return found if is_many else found[0]

    @guarded
    @checked
    def prober(self, states: StatesOf | None = None) -> Prober:
        """A prober of this engine, for log-probabilities or for hidden states."""
        return Prober(self._worker, states)

    @guarded
    @checked
    def open_session(self, *, restore: bytes | None = None, **request: Any) -> Session:
        """Open a conversation that keeps its pages.

        request: defaults of its replies' options, as for `stream`. restore: an export of `Session.export`.
        Raises OutOfCapacity when all sessions are in use, ValueError for an export of another model or a
        damaged one.
        """
        parts = self.parts
        snapshot = None if restore is None else SessionSnapshot.from_bytes(restore, parts.model_id)
        if snapshot is not None:
            vocabulary = parts.requests.vocabulary
            low, high = vocabulary.speech or (0, 0)
            snapshot.check(
                vocabulary.size,
                parts.requests.compile,
                self._max_samples,
                num_codes=high - low,
                hidden_size=parts.requests.hidden_size,
            )
        options = RequestOptions().changed(**request)
        at = (parts.requests, options, parts.model_id, self._threads, snapshot)
        return Session.open(self._worker, self._live_encoder, *at)

    @guarded
    async def aopen_session(self, *, restore: bytes | None = None, **request: Any) -> Session:
        """Do the same as `open_session`, for event loops."""
        self._worker.check_open()
        with enough_stack():
            made = self._threads.submit(partial(self.open_session, restore=restore, **request))
        try:
            return await shield(wrap_future(made))
        except CancelledError:
            made.add_done_callback(_close_session)
            raise

    @guarded
    def start_threads(self) -> None:
        """Start threads for sessions' coroutines now, at most 16, so that no event loop waits for one to start."""
        start_pool(self._threads, min(self.parts.core.max_rows + 2, 16))

    def _max_samples(self, num_tokens: int) -> float:
        """The most samples of a reply of so many tokens: all of them speech, and a second for a codec's frames."""
        speech = self.parts.core.speech
        return (num_tokens / speech.codes_per_s + 1.0) * speech.sample_rate

    @property
    def parts(self) -> EngineParts:
        """The loaded parts, for tools and tests; the core belongs to the worker's thread while replies run.

        Raises ValueError on a closed engine.
        """
        parts = self._parts
        if parts is None:
            raise ValueError("the engine is closed: make a new one with Engine.from_pretrained")
        return parts

    @property
    @guarded
    def model_id(self) -> str:
        """A digest of configuration and vocabulary, which identifies the model in exports and event logs."""
        return self._model_id

    @guarded
    @checked
    def warmup(self, batch_sizes: Sequence[AtLeastOne] | None = None) -> float:
        """Run steps and codec calls of these sizes (None: all powers of 2, for 2 s at most) -> seconds taken.

        Kernels that would be compiled at first use are compiled, and the scheduler learns the cost of steps
        before the first reply. Raises ValueError while replies run, and for sizes that do not fit.
        """
        worker = self._worker
        took_s = worker.call(lambda core: calibrate(core, worker.clock, batch_sizes))
        self._num_compiled = num_compiled()
        worker.telemetry.note(ready_s=took_s)
        return took_s

    @guarded
    def stats(self) -> Stats:
        """Figures so far: pages, slots, queue, step times, first audio, underruns, tokens. Prints as a table.

        ready_s: what `warmup` took; jit_after_warmup: kernels that were compiled since, by any engine of the
        process.
        """
        if self._num_compiled is not None:
            self._worker.telemetry.note(jit_after_warmup=num_compiled() - self._num_compiled)
        return self._worker.telemetry.stats(self._worker.clock())

    @guarded
    def collector(self) -> Collector:
        """The figures of `stats` for a Prometheus registry that this engine has to itself.

        Raises ImportError without prometheus-client.
        """
        return make_collector(self._worker.telemetry)

    @guarded
    def forecast(self) -> Forecast:
        """Expect the first sound of one more question; waits for the step in progress."""
        return self._worker.call(lambda core: forecast(core.table.columns, core.costs))

    @guarded
    def default_sampling(self) -> Sampling:
        """The checkpoint's own sampling, from generation_config.json."""
        return self._default_sampling

    @guarded
    def plan(self) -> MemoryPlan:
        """Bytes of weights, cache and codec; sessions that fit."""
        return self._plan

    @guarded
    @checked
    @contextmanager
    def trace(self, path: str | PathLike[str]) -> Iterator[None]:
        """Record what runs inside the block as Chrome trace JSON, for Perfetto.

        Raises OSError, ValueError before it begins.
        """
        target = check_replaceable(path)
        if not os.access(target.parent, os.W_OK):
            raise OSError(
                f"{target} cannot be written: {target.parent} is no directory that may be written to"
            )
        self._tracer.start()
        try:
            yield
        finally:
            self._tracer.stop()
            self._tracer.save(target)

    @guarded
    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the core has stopped."""
        self._worker.check_health()
        if self._live_encoder is not None:
            self._live_encoder.check_health()

    @guarded
    @checked
    def close(self, drain_s: Annotated[float, Limits(0, is_finite=False)] = 0.0) -> None:
        """Refuse new requests, give running ones drain_s seconds, cancel the rest, stop, and free the memory."""
        if self._live_encoder is not None:
            self._live_encoder.close()
        self._worker.close(drain_s)
        self._threads.shutdown(wait=False)
        self._lease.end()
        self._frozen.release()
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.requests.free()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.guard.is_at_home:
            self.close()

    __reduce__ = refuse_pickling


def _close_session(made: Future[Session]) -> None:
    """Close a session that was opened for a task which is gone."""
    if not made.cancelled() and made.exception() is None:
        made.result().close()
