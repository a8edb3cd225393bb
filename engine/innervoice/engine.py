"""Engine: load a model, answer prompts."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import torch

from innervoice.checkpoint import locate
from innervoice.codec.audio import read_audio
from innervoice.core import Request
from innervoice.loader import Loaded, load
from innervoice.plan import Plan, make_plan
from innervoice.schedule import Program, Schedule, compile_schedule
from innervoice.stream import Stream
from innervoice.trace import Tracer
from innervoice.types import Ids, Prompt, Reply, Sampling, Text
from innervoice.worker import Worker

DEFAULT_SCHEDULE = "interleaved"


class Engine:
    """A loaded model that answers prompts. Thread-safe; a context manager. Make one with `Engine.from_pretrained`."""

    def __init__(self, loaded: Loaded, plan: Plan, tracer: Tracer) -> None:
        self._loaded, self._plan, self._tracer = loaded, plan, tracer
        self._worker = Worker(loaded.core)

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
        codec_dtype: str = "auto",
        memory_fraction: float = 0.9,
        max_sessions: int | None = None,
        max_model_len: int | None = None,
        threads: int | None = None,
        streaming: str = "offline",
        vocoder_noise: bool = True,
    ) -> Engine:
        """Load a model.

        model: directory of the language model, or the parent of all three parts, or a hub id. load_format "dummy": random
        weights from config files alone. dtype "auto": the checkpoint's own; codec_dtype "auto": float32. max_model_len: tokens of
        prompt and reply together. threads: CPU threads, for the whole process. streaming: "offline" (sound in one piece at the
        end) or "reference" (chunks of 25, 50, 100, 150, 200 tokens, as GLM-4-Voice's demo cuts them). vocoder_noise False:
        reproducible sound.
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
            codec_dtype=codec_dtype,
            memory_fraction=memory_fraction,
            max_sessions=max_sessions,
            max_model_len=max_model_len,
        )
        tracer = Tracer()
        loaded = load(paths, plan, tracer, load_format=load_format, streaming=streaming, vocoder_noise=vocoder_noise)
        return cls(loaded, plan, tracer)

    @overload
    def generate(self, prompt: Prompt, **request: Any) -> Reply: ...
    @overload
    def generate(self, prompt: list[Prompt], **request: Any) -> list[Reply]: ...
    def generate(self, prompt: Prompt | list[Prompt], **request: Any) -> Reply | list[Reply]:
        """Run to the end; `request` as for `stream`. A list of prompts gives a list of replies. Raises RequestFailed."""
        if not isinstance(prompt, list):
            return self.stream(prompt, **request).reply()
        streams = [self.stream(one, **request) for one in prompt]
        return [stream.reply() for stream in streams]

    def stream(
        self,
        prompt: Prompt,
        *,
        schedule: Schedule | str | None = None,
        sampling: Sampling | None = None,
        system: str | None = None,
        reflection_caps: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> Stream:
        """Validate and submit now; read the events with `for` or `async for`.

        prompt: a path, file bytes or (samples, rate) for speech; Text for typed text; Ids for ids as they are. schedule: a
        Schedule, a preset's name or a .json file (None: interleaved). system: replaces the model's own sentence. reflection_caps:
        run-time caps of the reflection segments in order. Raises ValueError, FileNotFoundError for bad input, EngineDead.
        """
        submitted_s = self._worker.clock()
        self.check_health()
        if timeout_s is not None and timeout_s <= 0:
            raise ValueError(f"timeout_s is {timeout_s}: it must be above 0")
        program = self._compile(schedule)
        request = Request(
            reply_id=uuid.uuid4().hex,
            prompt_ids=self._checked(self._prompt_ids(prompt, system)),
            program=program,
            sampling=self._resolve(sampling or Sampling()),
            submitted_s=submitted_s,
            caps=_checked_caps(reflection_caps),
            deadline_s=float("inf") if timeout_s is None else submitted_s + timeout_s,
        )
        decoder = self._loaded.decoder
        worker = self._worker
        stream = Stream(request.reply_id, 1 if decoder is None else decoder.sample_rate, lambda: worker.cancel(request.reply_id))
        worker.submit(request, stream)
        return stream

    def astream(self, prompt: Prompt, **request: Any) -> Stream:
        """`stream`, under the name async readers look for."""
        return self.stream(prompt, **request)

    def default_sampling(self) -> Sampling:
        """The checkpoint's own, from generation_config.json."""
        generation = self._loaded.generation
        return Sampling(temperature=generation.temperature, top_k=generation.top_k, top_p=generation.top_p)

    def plan(self) -> Plan:
        """Bytes of weights, cache and codec; sessions that fit."""
        return self._plan

    @contextmanager
    def trace(self, path: str | PathLike[str]) -> Iterator[None]:
        """Record what runs inside the block as Chrome trace JSON, which Perfetto opens. Raises OSError before it begins."""
        target = Path(path)
        if not os.access(target.parent, os.W_OK):
            raise OSError(f"{target} cannot be written: {target.parent} is no directory that may be written to")
        self._tracer.enabled = True
        try:
            yield
        finally:
            self._tracer.enabled = False
            self._tracer.save(target)

    def check_health(self) -> None:
        """Raise EngineDead, with the cause, once the core has stopped."""
        self._worker.check_health()

    def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give running ones drain_s seconds, cancel the rest, stop."""
        self._worker.close(drain_s)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _compile(self, schedule: Schedule | str | None) -> Program:
        loaded = self._loaded
        made = DEFAULT_SCHEDULE if schedule is None else schedule
        if isinstance(made, str):
            made = Schedule.load(made) if made.endswith(".json") else Schedule.preset(made)
        return compile_schedule(made, loaded.vocabulary, loaded.tokenizer.special)

    def _prompt_ids(self, prompt: Prompt, system: str | None) -> list[int]:
        loaded = self._loaded
        if isinstance(prompt, Ids):
            return list(prompt.ids)
        if isinstance(prompt, Text):
            if not prompt.text.strip():
                raise ValueError("the prompt's text is empty")
            return loaded.family.prompt_ids(loaded.tokenizer, loaded.vocabulary, prompt.text, system)
        if loaded.speech_tokenizer is None:
            raise ValueError(
                "a recording needs a speech tokenizer, and none was loaded: give speech_tokenizer=, or a Text prompt"
            )
        samples, rate = read_audio(prompt)
        codes = loaded.speech_tokenizer.encode(samples, rate)
        return loaded.family.prompt_ids(loaded.tokenizer, loaded.vocabulary, codes, system)

    def _checked(self, ids: list[int]) -> tuple[int, ...]:
        size, most = self._loaded.vocabulary.size, self._plan.max_model_len
        if not ids:
            raise ValueError("the prompt has no ids")
        wrong = [i for i in ids if not 0 <= i < size]
        if wrong:
            raise ValueError(f"prompt id {wrong[0]} is outside the vocabulary of {size}")
        if len(ids) >= most:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the cache holds {most}, reply included: shorten it or raise max_model_len"
            )
        return tuple(ids)

    def _resolve(self, sampling: Sampling) -> Sampling:
        """Fill what is unset from the checkpoint; draw a seed."""
        default = self.default_sampling()
        unset = {name: getattr(default, name) for name in ("temperature", "top_k", "top_p") if getattr(sampling, name) is None}
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        return replace(sampling, **unset, seed=seed)


def _checked_caps(caps: Sequence[int]) -> tuple[int, ...]:
    wrong = [cap for cap in caps if cap < 0]
    if wrong:
        raise ValueError(f"reflection_caps holds {wrong[0]}: a cap is 0 or more")
    return tuple(caps)
