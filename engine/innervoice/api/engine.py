"""Engine: load a model, answer prompts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import torch

from innervoice.api.gc_freeze import freeze, thaw
from innervoice.api.live_audio import Listener, ReadsAhead
from innervoice.api.loader import Loaded, load
from innervoice.api.memory_plan import MemoryPlan, make_plan
from innervoice.api.request_builder import RequestOptions
from innervoice.api.session import Session
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.quantization import Quantization
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.runtime.calibration import calibrate
from innervoice.runtime.record import request_line
from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.runtime.snapshot import SessionSnapshot
from innervoice.runtime.stream import Stream
from innervoice.runtime.worker import Worker
from innervoice.telemetry.prometheus import make_collector
from innervoice.telemetry.stats import Stats, Telemetry
from innervoice.telemetry.trace import Tracer
from innervoice.types import Prompt, Reply, Sampling
from innervoice_kernels.jit import num_compiled
from innervoice_kernels.native import keep_threads_native, torch_threads_here

if TYPE_CHECKING:
    from prometheus_client.registry import Collector


class Engine:
    """A loaded model that answers prompts. Thread-safe; a context manager. Make one with `Engine.from_pretrained`.

    While one is open, what the process held when it opened stays out of garbage collection (`gc.freeze`).
    """

    def __init__(
        self,
        loaded: Loaded,
        plan: MemoryPlan,
        tracer: Tracer,
        *,
        name: str = "engine",
        reader_timeout_s: float | None = None,
    ) -> None:
        self._loaded, self._plan, self._tracer = loaded, plan, tracer
        threads, is_native = torch.get_num_threads(), loaded.core.runner.is_native
        # With two threads, those that torch keeps spinning cost native code more than torch gains by them.
        begin = keep_threads_native if is_native and threads == 2 else None
        self._worker = Worker(
            loaded.core, telemetry=Telemetry(name), reader_timeout_s=reader_timeout_s, begin=begin
        )
        tokenizer = loaded.intake.speech_tokenizer
        listens = partial(torch_threads_here, max(1, threads // 2)) if is_native else None
        listener = (loaded.intake.max_model_len, self._tell_dialogues, self._worker.telemetry.count, listens)
        self._compiled: int | None = None  # kernels, when all were ready; counting begins before the first
        num_compiled()
        self._listener = None if tokenizer is None else Listener(tokenizer, *listener)

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str],
        *,
        speech_tokenizer: str | PathLike[str] | None = None,
        decoder: str | PathLike[str] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        load_format: str = "auto",
        device: str = "auto",
        dtype: str = "auto",
        quantization: str | Quantization | None = None,
        codec_dtype: str = "auto",
        kv_dtype: str = "auto",
        memory_fraction: float = 0.9,
        max_sessions: int | None = None,
        max_model_len: int | None = None,
        threads: int | None = None,
        streaming: str | SteadySettings = "steady",
        vocoder_noise: bool = True,
        share_prefixes: bool = True,
        backend: str = "auto",
        policy: str = "slack",
        max_load: float = SchedulerSettings.max_load,
        max_waiting: int | None = None,
        preempt: str = "recompute",
        reader_timeout_s: float | None = None,
        name: str = "engine",
        warmup: bool | None = None,
    ) -> Engine:
        """Load a model.

        model: directory of the language model, or the parent of all three parts, or a hub id. load_format "dummy": random
        weights from config files alone. dtype "auto": the checkpoint's own; codec_dtype "auto": float32, and on a GPU, unless
        dtype is float32, bfloat16 for the speech decoder; kv_dtype "auto": the model's; "fp8_e4m3": half of that. quantization:
        "int8", "int4", "fp8" or a Quantization, which the weights are turned into while they are read; None: as they are in the
        file. max_sessions: None: 16 on a CPU, 256 on a GPU, or as many as fit. max_model_len: tokens of prompt and reply
        together. threads: CPU threads, for the whole process. streaming: "steady" (a chunk after 10 tokens, then every 26, at
        the same cost whatever the length; a SteadySettings for other
        chunks, another look-back or fewer solver steps), "offline" (sound in one piece at the end) or "reference" (chunks of
        25, 50, 100, 150, 200 tokens, as GLM-4-Voice's demo cuts them). vocoder_noise False: reproducible sound. share_prefixes:
        keep the pages of what was computed, for whoever begins with the same tokens. policy: who takes part in a step: "slack"
        (whose sound runs out first; reflection is funded by sound that is unplayed), "fixed" (arrival order, reflection cut at
        a constant) or "fcfs" (arrival order). max_load: under "slack", a reply waits for its row while the speech of all,
        with it, would take more of the time than this share. max_waiting: replies that may wait, more are refused. preempt:
        what a reply that gives its pages to others does when it gets some again: "recompute" or "swap". reader_timeout_s: a
        reply whose reader leaves a full queue unread so long ends with an error; until then it pauses. name: of this engine
        in metrics. warmup: see there; None: on a GPU. backend: of the language model: "auto" is native code on a CPU where it
        covers the model, else "plain" PyTorch.
        Raises FileNotFoundError, ValueError, OutOfCapacity.
        """
        if threads is not None:
            if threads < 1:
                raise ValueError(f"threads is {threads}: it must be 1 or more")
            torch.set_num_threads(threads)
        paths = locate(model, speech_tokenizer, decoder, revision=revision, local_files_only=local_files_only)
        plan = make_plan(
            paths,
            device=device,
            dtype=dtype,
            quantization=quantization,
            codec_dtype=codec_dtype,
            kv_dtype=kv_dtype,
            memory_fraction=memory_fraction,
            max_sessions=max_sessions,
            max_model_len=max_model_len,
            streaming=streaming,
        )
        tracer = Tracer()
        loaded = load(
            paths,
            plan,
            tracer,
            load_format=load_format,
            streaming=streaming,
            vocoder_noise=vocoder_noise,
            share_prefixes=share_prefixes,
            backend=backend,
            threads=threads,
            policy=policy,
            max_load=max_load,
            max_sessions=max_sessions,
            max_waiting=max_waiting,
            preempt=preempt,
        )
        engine = cls(loaded, plan, tracer, name=name, reader_timeout_s=reader_timeout_s)
        if warmup or (warmup is None and torch.device(plan.device).type == "cuda"):
            engine.warmup()
        freeze()
        engine.__dict__["_holds_heap"] = True
        return engine

    @overload
    def generate(self, prompt: Prompt, **request: Any) -> Reply: ...
    @overload
    def generate(self, prompt: list[Prompt], **request: Any) -> list[Reply]: ...
    def generate(self, prompt: Prompt | list[Prompt], **request: Any) -> Reply | list[Reply]:
        """Run to the end; `request` as for `stream`. A list of prompts gives a list of replies. Raises RequestFailed."""
        request = {"realtime": False, **request}
        if not isinstance(prompt, list):
            return self.stream(prompt, **request).reply()
        streams = [self.stream(one, **request).bounded(math.inf, math.inf) for one in prompt]
        return [stream.reply() for stream in streams]

    def stream(self, prompt: Prompt, **request: Any) -> Stream:
        """Validate and submit now; read the events with `for` or `async for`.

        prompt: a path, file bytes or (samples, rate) for speech; Text for typed text; Ids for ids as they are. request:
        schedule: a Schedule, a preset's name or a .json file (default: interleaved, or text alone for a model without speech);
        sampling: a Sampling; system: replaces the model's own sentence; output_rate: of the audio in Hz (default: the decoder's
        own); output_format: "float32" or "int16" samples; reflection_caps: run-time caps of the reflection segments in order;
        timeout_s; priority: higher ones first; realtime: whether somebody listens meanwhile, so that the reply is made at the
        listener's pace and reflects as long as unplayed sound allows (False: as fast as it goes and as its schedule says;
        `generate` sets it). Raises ValueError, FileNotFoundError for bad input, OutOfCapacity when max_waiting replies wait
        already, EngineDead.
        """
        submitted_s = self._worker.clock()
        self.check_health()
        intake = self._loaded.intake
        made = intake.request(prompt, RequestOptions().changed(**request), submitted_s)
        stream = self._worker.submit(made, made.output_rate or intake.sample_rate)
        stream.make_record = partial(request_line, made, self.model_id)
        return stream

    def astream(self, prompt: Prompt, **request: Any) -> Stream:
        """`stream`, under the name async readers look for."""
        return self.stream(prompt, **request)

    def open_session(self, *, restore: bytes | None = None, **request: Any) -> Session:
        """A dialogue that keeps its pages; request: what its replies take where they say nothing else, as for `stream`.

        restore: what `Session.export` gave. Raises OutOfCapacity when all sessions are in use, ValueError for a foreign or
        damaged export.
        """
        loaded = self._loaded
        export = None if restore is None else SessionSnapshot.from_bytes(restore, loaded.model)
        options = RequestOptions().changed(**request)
        return Session.open(self._worker, self._listener, loaded.intake, options, loaded.model, export)

    @property
    def model_id(self) -> str:
        """What tells this model from others in an export or an event log: a digest of what its ids and its cache mean."""
        return self._loaded.model

    def warmup(self, batch_sizes: Sequence[int] | None = None) -> float:
        """Run steps and codec calls of these sizes (None: all powers of 2, for 2 s at most) -> seconds taken.

        What is compiled at first use is compiled, and the scheduler knows what steps cost before the first reply. Raises
        ValueError while replies run, and for sizes that do not fit.
        """
        worker = self._worker
        took_s = worker.call(lambda core: calibrate(core, worker.clock, batch_sizes))
        self._compiled = num_compiled()
        worker.telemetry.note(ready_s=took_s)
        return took_s

    def stats(self) -> Stats:
        """What was counted so far: pages, slots, queue, step times, first audio, underruns, tokens. Prints as a table.

        ready_s: what `warmup` took; jit_after_warmup: kernels that were compiled since, by any engine of the process.
        """
        if self._compiled is not None:
            self._worker.telemetry.note(jit_after_warmup=num_compiled() - self._compiled)
        return self._worker.telemetry.stats(self._worker.clock())

    def collector(self, *others: Engine) -> Collector:
        """The same for Prometheus, to be registered in a registry of the caller's; with other engines where they share it.

        Raises ImportError without prometheus-client, ValueError for engines of one name.
        """
        return make_collector(self._worker.telemetry, *(other._worker.telemetry for other in others))

    def default_sampling(self) -> Sampling:
        """The checkpoint's own, from generation_config.json."""
        return self._loaded.intake.default_sampling()

    def plan(self) -> MemoryPlan:
        """Bytes of weights, cache and codec; sessions that fit."""
        return self._plan

    @contextmanager
    def trace(self, path: str | PathLike[str]) -> Iterator[None]:
        """Record what runs inside the block as Chrome trace JSON, for Perfetto. Raises OSError, ValueError before it begins."""
        target = Path(path)
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

    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the core has stopped."""
        self._worker.check_health()
        if self._listener is not None:
            self._listener.check_health()

    def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give running ones drain_s seconds, cancel the rest, stop."""
        if self._listener is not None:
            self._listener.close()
        self._worker.close(drain_s)
        if self.__dict__.pop("_holds_heap", False):  # once, whoever closes it too
            thaw()

    def __enter__(self) -> Engine:
        return self

    def _tell_dialogues(self, tell: Callable[[ReadsAhead], None]) -> None:
        self._worker.call(lambda core: tell(core.dialogues))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
