"""Checkpoint directories -> a core that is ready to step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import torch

from innervoice.api.memory_plan import (
    DTYPES,
    FP8_PAGES,
    MOST_SESSIONS,
    PAGE_SIZE,
    Configs,
    MemoryPlan,
    read_configs,
)
from innervoice.api.request_builder import RequestBuilder
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import CheckpointPaths
from innervoice.checkpoint.model_config import read_generation_config
from innervoice.checkpoint.safetensors import DummyTensors, TensorDir, TensorSource
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer
from innervoice.codec.glm_voice.voice import GlmVoiceOutput
from innervoice.codec.speech_codec import Streaming
from innervoice.model.device_step import DeviceStep
from innervoice.model.gguf_source import GgufSource
from innervoice.model.native import check_backend
from innervoice.model.pages import PagePool, pages_for
from innervoice.model.quant_source import QuantizedDir, QuantizingSource
from innervoice.model.runner import ModelRunner
from innervoice.model.transformer import Transformer
from innervoice.runtime.core import Core
from innervoice.runtime.overlap import Overlap
from innervoice.runtime.replies import Preempt
from innervoice.runtime.scheduler import Policy, SchedulerSettings
from innervoice.schedule import Schedule, Segment, compile_schedule
from innervoice.telemetry.trace import Tracer
from innervoice.types import OutOfCapacity, Vocabulary
from innervoice_kernels.backend import TRITON, choose

LoadFormat = Literal["auto", "dummy"]


@dataclass(frozen=True)
class Loaded:
    """The parts of an engine. model: what tells this model from others in an exported session."""

    core: Core
    intake: RequestBuilder
    model: str


def load(
    paths: CheckpointPaths,
    plan: MemoryPlan,
    tracer: Tracer,
    *,
    load_format: str,
    streaming: str | SteadySettings,
    vocoder_noise: bool,
    share_prefixes: bool,
    policy: str,
    max_sessions: int | None,
    max_waiting: int | None,
    preempt: str,
    backend: str = "auto",
    threads: int | None = None,
    max_load: float = SchedulerSettings.max_load,
) -> Loaded:
    """Load every part as planned. Raises ValueError, FileNotFoundError for bad files, OutOfCapacity when it does not fit."""
    _check_choice("load_format", load_format, get_args(LoadFormat))
    mode, settings = ("steady", streaming) if isinstance(streaming, SteadySettings) else (streaming, None)
    _check_choice("streaming", mode, get_args(Streaming))
    check_backend(backend)
    _check_choice("policy", policy, get_args(Policy))
    scheduler = SchedulerSettings(policy=cast(Policy, policy), max_load=max_load, page_size=PAGE_SIZE)
    _check_choice("preempt", preempt, get_args(Preempt))
    if max_waiting is not None and max_waiting < 0:
        raise ValueError(f"max_waiting is {max_waiting}: it must be 0 or more")
    if plan.sessions < 1:
        raise OutOfCapacity(_too_large(plan))
    configs = read_configs(paths)
    family = configs.family
    # A dummy model may come without tokenizer files: it then gets a stand-in of the right size.
    tokenizer, vocabulary = family.load_text(paths.model, configs.num_codes, stand_in=load_format == "dummy")
    dummy = load_format == "dummy"
    with tracer.span("load"):
        source = _source(paths, configs, plan, dummy)
        weights = family.load_weights(configs.model, source, DTYPES[plan.dtype], plan.device)
        if torch.device(plan.device).type == "cuda":
            weights = weights.laid_out()
        speech_tokenizer, decoder = _load_codec(paths, configs, plan, tracer, load_format, vocoder_noise)
    max_rows = min(plan.sessions, max_sessions or MOST_SESSIONS[torch.device(plan.device).type])
    voice = (
        None
        if decoder is None
        else GlmVoiceOutput(decoder, cast(Streaming, mode), tracer, max_slots=max_rows, settings=settings)
    )
    num_pages = max_rows * pages_for(plan.max_model_len, PAGE_SIZE)
    kv_dtype = torch.float8_e4m3fn if plan.kv_dtype == FP8_PAGES else DTYPES[plan.kv_dtype]
    model = Transformer(configs.model, weights)
    runner = ModelRunner(model, num_pages, PAGE_SIZE, tracer, kv_dtype, backend=backend, threads=threads)
    stepping = None
    if (
        torch.device(plan.device).type == "cuda"
        and backend == "auto"
        and choose("step", weights.final_norm) == TRITON
    ):
        stepper = DeviceStep(
            model, runner.kv, max_rows=max_rows, max_model_len=plan.max_model_len, tracer=tracer
        )
        stepping = Overlap(stepper, compile_schedule(Schedule((Segment("transcript"),)), vocabulary))
    core = Core(
        runner,
        PagePool(num_pages, PAGE_SIZE),
        tokenizer,
        voice,
        tracer,
        max_rows=max_rows,
        max_model_len=plan.max_model_len,
        share_prefixes=share_prefixes,
        scheduler=replace(scheduler, max_rows=max_rows),
        max_waiting=max_waiting,
        preempt=cast(Preempt, preempt),
        stepping=stepping,
    )
    intake = RequestBuilder(
        family=family,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        generation=read_generation_config(paths.model),
        speech_tokenizer=speech_tokenizer,
        max_model_len=plan.max_model_len,
        sample_rate=1 if voice is None else voice.sample_rate,
    )
    return Loaded(core, intake, _fingerprint(configs, vocabulary))


def _source(paths: CheckpointPaths, configs: Configs, plan: MemoryPlan, dummy: bool) -> TensorSource:
    """The weights of the language model, in the format that is planned."""
    if configs.quantization is not None and not dummy:
        return QuantizedDir(TensorDir(paths.model), configs.quantization)
    file = paths.model / MODEL
    source = DummyTensors() if dummy else GgufSource(file) if file.exists() else TensorDir(paths.model)
    return source if plan.quantization is None else QuantizingSource(source, plan.quantization)


def _fingerprint(configs: Configs, vocabulary: Vocabulary) -> str:
    """A digest of what the ids and the keys and values mean; the weights themselves are not in it."""
    told = json.dumps([asdict(configs.model), asdict(vocabulary)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _load_codec(
    paths: CheckpointPaths,
    configs: Configs,
    plan: MemoryPlan,
    tracer: Tracer,
    load_format: str,
    vocoder_noise: bool,
) -> tuple[SpeechTokenizer | None, SpeechDecoder | None]:
    common: dict[str, Any] = {"device": plan.device, "load_format": load_format, "tracer": tracer}
    tokenizer = decoder = None
    if paths.speech_tokenizer is not None:
        dtype = DTYPES[plan.speech_tokenizer_dtype]
        tokenizer = SpeechTokenizer.from_pretrained(paths.speech_tokenizer, dtype=dtype, **common)
    if paths.decoder is not None:
        dtype = DTYPES[plan.codec_dtype]
        decoder = SpeechDecoder.from_pretrained(
            paths.decoder, vocoder_noise=vocoder_noise, dtype=dtype, **common
        )
    return tokenizer, decoder


def _too_large(plan: MemoryPlan) -> str:
    def gib(num_bytes: int) -> str:
        return f"{num_bytes / 2**30:.2f} GiB"

    return (
        f"the model does not fit: {gib(plan.weight_bytes)} of weights, {gib(plan.fixed_bytes - plan.weight_bytes)} of codec and "
        f"{gib(plan.kv_bytes_per_session)} of cache for a session of {plan.max_model_len} tokens, with "
        f"{gib(plan.memory_bytes)} on {plan.device}: lower max_model_len, raise memory_fraction or take a smaller dtype"
    )


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: use {' or '.join(allowed)}")
