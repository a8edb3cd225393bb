"""Checkpoint directories -> a core that is ready to step."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, cast

import torch

from innervoice.api.capacity import is_out_of_memory, not_allocated
from innervoice.api.configs import Configs
from innervoice.api.memory_plan import DTYPES, MOST_SESSIONS, PAGE_SIZE, MemoryPlan
from innervoice.api.options import EngineOptions
from innervoice.api.preparation import Prepared
from innervoice.api.request_builder import RequestBuilder
from innervoice.checkpoint.audio_encoder import AudioEncoderConfig
from innervoice.checkpoint.safetensors import DummyTensors, TensorDir, TensorSource
from innervoice.checkpoint.tied_head import check_tied_head
from innervoice.codec.modes import own_modes
from innervoice.codec.own_stream import OwnStream
from innervoice.codec.speech_codec import (
    CodecLoad,
    NullSpeechOutput,
    SpeechCodec,
    SpeechEncoder,
    SpeechOutput,
)
from innervoice.model.pages import FP8_PAGES, PagePool, pages_for
from innervoice.model.quant_source import QuantizedDir, QuantizingSource
from innervoice.model.runner import ModelRunner
from innervoice.model.transformer import Transformer
from innervoice.runtime.core import Core
from innervoice.runtime.make_core import make_core
from innervoice.runtime.scheduler import SchedulerSettings
from innervoice.runtime.scheduler.settings import Preempt
from innervoice.schedule import Program, Schedule, Segment, compile_schedule
from innervoice.telemetry.trace import Tracer
from innervoice.types import OutOfCapacity, Vocabulary
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.streams import mark, own_stream

if TYPE_CHECKING:
    from innervoice.api.row_encoder import RowEncoder
    from innervoice.model.device_step import DeviceStep


@dataclass(frozen=True)
class EngineParts:
    """The parts of an engine. model_id: digest that identifies the model in an exported session."""

    core: Core
    requests: RequestBuilder
    model_id: str


def load(prepared: Prepared, tracer: Tracer) -> EngineParts:
    """Load every part as planned.

    Raises ValueError, FileNotFoundError for bad files, OutOfCapacity where an allocation fails.
    """
    try:
        # Tensors made in a caller's inference mode could not be written outside of it, by the worker's thread.
        with own_modes(inference=False):
            return _load(prepared, tracer)
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfCapacity(not_allocated(prepared.plan, _num_rows(prepared), error)) from error


def _num_rows(prepared: Prepared) -> int:
    most = MOST_SESSIONS[torch.device(prepared.plan.device).type]
    return min(prepared.plan.sessions, prepared.options.max_sessions or most)


def _load(prepared: Prepared, tracer: Tracer) -> EngineParts:
    configs = prepared.configs
    plan, options = prepared.plan, prepared.options
    requests = prepared.requests
    is_dummy = options.load_format == "dummy"

    # Weights of the language model and the codec.
    with tracer.span("load"):
        source = _source(prepared, is_dummy)
        weights = configs.family.load_weights(configs.model, source, DTYPES[plan.dtype], plan.device)
        if prepared.gguf is not None and not is_dummy:
            prepared.gguf.check_all_read()
        on_gpu = torch.device(plan.device).type == "cuda"
        weights = weights.laid_out().for_inputs(plan.activations, in_place=True)
        max_rows = _num_rows(prepared)
        speech_encoder, speech = _load_codec(configs.codec, plan, options, tracer, max_rows)
        if configs.encoder is not None:
            speech_encoder = _load_encoder(configs.encoder, prepared, tracer)

    # The core: the codec's side, the model with its pages, and on a GPU the step that draws there.
    model = Transformer(configs.model, weights, invariant=options.invariant and on_gpu)
    num_pages = max_rows * pages_for(plan.max_model_len, PAGE_SIZE)
    kv_dtype = torch.float8_e4m3fn if plan.kv_dtype == FP8_PAGES else DTYPES[plan.kv_dtype]
    runner = ModelRunner(
        model,
        num_pages,
        PAGE_SIZE,
        tracer,
        kv_dtype,
        backend=options.backend,
        threads=options.threads,
        max_model_len=plan.max_model_len,
    )
    core = make_core(
        runner,
        PagePool(num_pages, PAGE_SIZE),
        requests.tokenizer,
        speech,
        tracer,
        max_rows=max_rows,
        max_model_len=plan.max_model_len,
        share_prefixes=options.share_prefixes,
        scheduler=_scheduler_settings(options, max_rows),
        max_waiting=options.max_waiting,
        preempt=cast(Preempt, options.preempt),
        device=_device_step(runner, plan, options, requests.vocabulary, tracer, max_rows),
    )

    if on_gpu:  # what was queued here is there for the streams of all threads
        torch.cuda.synchronize(plan.device)
    requests = replace(requests, speech_tokenizer=speech_encoder, sample_rate=speech.sample_rate)
    return EngineParts(core, requests, _fingerprint(configs, requests.vocabulary))


def _load_encoder(config: AudioEncoderConfig, prepared: Prepared, tracer: Tracer) -> RowEncoder:
    """The encoder of a model that hears recordings as embedding rows, in its file's own numbers."""
    from innervoice.api.row_encoder import RowEncoder
    from innervoice.codec.audio_encoder import AudioEncoder

    heard = prepared.requests.vocabulary.heard
    assert heard is not None, "a model with an encoder names the ids of recordings"
    plan = prepared.plan
    is_dummy = prepared.options.load_format == "dummy"
    source: TensorSource = DummyTensors() if is_dummy else TensorDir(prepared.paths.model)
    encoder = AudioEncoder.load(config, source, DTYPES[plan.audio_encoder_dtype], plan.device)
    return RowEncoder(encoder, heard[1], tracer)


def _scheduler_settings(options: EngineOptions, max_rows: int) -> SchedulerSettings:
    return SchedulerSettings(
        policy=options.policy,
        max_load=options.max_load,
        max_rows=max_rows,
        page_size=PAGE_SIZE,
    )


def _device_step(
    runner: ModelRunner,
    plan: MemoryPlan,
    options: EngineOptions,
    vocabulary: Vocabulary,
    tracer: Tracer,
    max_rows: int,
) -> tuple[DeviceStep, Program] | None:
    """The decode step as CUDA graphs, and a program that times it.

    None where the host draws: on a CPU, with the plain back end, without Triton.
    """
    model = runner.model
    if torch.device(plan.device).type != "cuda" or options.backend != "auto":
        return None
    if choose("step", model.weights.final_norm) != TRITON:
        return None
    from innervoice.model.device_step import DeviceStep

    step = DeviceStep(
        model,
        runner.kv,
        max_rows=max_rows,
        max_model_len=plan.max_model_len,
        tracer=tracer,
        invariant=options.invariant,
        fused=options.fusion,
    )
    return step, compile_schedule(Schedule((Segment("transcript"),)), vocabulary)


def _source(prepared: Prepared, dummy: bool) -> TensorSource:
    """The weights of the language model, in the format that is planned."""
    paths, configs, plan = prepared.paths, prepared.configs, prepared.plan
    if configs.quantization is not None and not dummy:
        return QuantizedDir(TensorDir(paths.model), configs.quantization)
    if not dummy and prepared.gguf is None and configs.model.tied:
        check_tied_head(TensorDir(paths.model))
    source = DummyTensors() if dummy else prepared.gguf or TensorDir(paths.model)
    return source if plan.quantization is None else QuantizingSource(source, plan.quantization)


def _fingerprint(configs: Configs, vocabulary: Vocabulary) -> str:
    """A digest of the configuration and the vocabulary, which decide what ids, keys and values mean; not of
    the weights.
    """
    ids = asdict(vocabulary)
    if not vocabulary.words:
        del ids["words"]  # a vocabulary without added words keeps the digest that it always had
    if vocabulary.tool_open is None:  # and so does one without tool calls
        ids = {name: value for name, value in ids.items() if not name.startswith("tool_")}
    if vocabulary.heard is None:  # or embedding rows
        ids = {name: value for name, value in ids.items() if name not in ("heard", "unseen")}
    content = json.dumps([asdict(configs.model), ids], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _load_codec(
    codec: SpeechCodec | None, plan: MemoryPlan, options: EngineOptions, tracer: Tracer, max_rows: int
) -> tuple[SpeechEncoder | None, SpeechOutput]:
    """Both halves of the speech codec: where the model has none, no encoder and an output without sound."""
    if codec is None:
        return None, NullSpeechOutput()
    listen = CodecLoad(plan.device, plan.speech_tokenizer_dtype, options.load_format, tracer=tracer)
    speak = CodecLoad(plan.device, plan.codec_dtype, options.load_format, options.vocoder_noise, tracer)
    output = codec.load_output(speak, options.streaming, max_rows)
    device = torch.device(plan.device)
    if output is not None and device.type == "cuda":
        output = OwnStream(output, own_stream(device), mark)
    return codec.load_encoder(listen), NullSpeechOutput() if output is None else output
