"""Does it fit? Bytes of weights, cache and codec from the config files alone, and how many sessions the
memory carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from innervoice.api.available_memory import available_bytes
from innervoice.api.configs import Configs, longest_sequence, quantization_of, read_configs
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import CheckpointPaths
from innervoice.checkpoint.model_config import ModelConfig, dtype_bytes
from innervoice.checkpoint.quantization import Quantization
from innervoice.model.gguf_source import GgufSource
from innervoice.model.pages import FP8_PAGES, Activations, PageFormat, page_bytes, pages_for
from innervoice.model.quant_source import BlankSource, WeightSource

if TYPE_CHECKING:
    from innervoice.model.weights import ModelWeights

PAGE_SIZE = 16
MOST_SESSIONS = {"cpu": 16, "cuda": 256}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by use; sessions: how many of max_model_len tokens each fit at once (0: the weights alone are too
    large).

    memory_bytes: what the device had left when the plan was made; memory_fraction of it may be used.
    voice_bytes_per_session: a slot of `steady` streaming, 0 without a decoder or in another streaming.
    audio_encoder_bytes: of a model that hears recordings as embedding rows, 0 for others.
    activations: how inputs of int8 and int4 weights are rounded, "native" without such weights.
    step_bytes_per_session: what the step on a GPU keeps for a row, its logits above all.
    """

    weight_bytes: int
    kv_bytes_per_token: int
    kv_bytes_per_session: int
    voice_bytes_per_session: int
    step_bytes_per_session: int
    codec_bytes: int
    speech_tokenizer_bytes: int
    memory_bytes: int
    max_model_len: int
    sessions: int
    device: str
    dtype: str
    codec_dtype: str
    speech_tokenizer_dtype: str
    quantization: Quantization | None = None
    kv_dtype: str = ""
    audio_encoder_bytes: int = 0
    audio_encoder_dtype: str = "float32"
    activations: Activations = "native"

    @property
    def fixed_bytes(self) -> int:
        """Bytes that are needed before the first session."""
        heard = self.speech_tokenizer_bytes + self.audio_encoder_bytes
        return self.weight_bytes + self.codec_bytes + heard


def choose_device(device: str) -> torch.device:
    """A device by name; "auto": the first GPU, or the CPU. Raises ValueError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is unknown: use auto, cpu, cuda or cuda:N") from None
    if chosen.type not in MOST_SESSIONS:
        raise ValueError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not here: {torch.cuda.device_count()} CUDA devices were found; use cpu"
        )
    return chosen


def choose_dtype(asked: str, own: str, is_quantised: bool) -> str:
    """The dtype of weights, hidden states and cache. asked: the option; own: the checkpoint's.

    "auto" is the checkpoint's own, but bfloat16 for quantised weights of a float32 checkpoint, which is what a
    GGUF file counts as: such a file was made for speed, and a product that keeps every bit of its inputs is
    several times slower.
    """
    if asked != "auto":
        return asked
    return "bfloat16" if is_quantised and own == "float32" else own


def choose_activations(
    options: EngineOptions, device: torch.device, dtype: str, kv_dtype: str, weights: ModelWeights
) -> Activations:
    """Return how inputs of int8 and int4 weights are rounded. weights: their types alone count.

    "auto" is "int8" where the native decoder runs a bfloat16 model with such weights, "mixed" where that would cost too
    much of what the model knows. Raises ValueError for either where nothing multiplies inputs of 8 bits.
    """
    if options.activations == "native":
        return "native"
    reason = None
    if device.type != "cpu":
        reason = f"only a CPU multiplies inputs of 8 bits, not {device}"
    elif options.backend == "plain":
        reason = "only the native decoder multiplies inputs of 8 bits, not backend plain"
    elif not weights.has_codes:
        reason = "no weight of this model is int8 or int4, which alone are multiplied so"
    elif not {dtype, kv_dtype} <= {"float32", "bfloat16"}:
        reason = f"the native decoder runs float32 and bfloat16, not {dtype} with a cache of {kv_dtype}"
    if options.activations != "auto":
        if reason is not None:
            raise ValueError(f"activations is {options.activations!r}: {reason}; use auto")
        return cast(Activations, options.activations)
    if reason is not None or dtype != "bfloat16":
        return "native"
    return "mixed" if weights.loses_most else "int8"


def make_plan(paths: CheckpointPaths, options: EngineOptions | None = None) -> MemoryPlan:
    """The plan for a checkpoint on this machine; nothing is loaded. Raises ValueError, FileNotFoundError."""
    return plan_memory(paths, read_configs(paths), options or EngineOptions(), gguf_of(paths))


def gguf_of(paths: CheckpointPaths) -> GgufSource | None:
    """The weights of a model that is a GGUF file; None: it is not. Raises ValueError for a damaged one."""
    file = paths.model / MODEL
    return GgufSource(file) if file.exists() else None


def plan_memory(
    paths: CheckpointPaths, configs: Configs, options: EngineOptions, gguf: GgufSource | None
) -> MemoryPlan:
    """The plan for a checkpoint whose config files have been read; see `make_plan`."""
    device = choose_device(options.device)
    model_len = longest_sequence(options.max_model_len, configs.model)

    # Types and formats, with "auto" resolved.
    quantization = quantization_of(paths, configs, options.quantization)
    is_quantised = quantization is not None or (gguf is not None and gguf.is_quantised)
    dtype = choose_dtype(options.dtype, configs.model.dtype, is_quantised)
    kv_dtype = dtype if options.kv_dtype == "auto" else options.kv_dtype
    codec_dtype, tokenizer_dtype = _codec_dtypes(options.codec_dtype, device, dtype)

    # What is needed once, whatever the number of sessions.
    weights = _blank_weights(configs, gguf, dtype, quantization)
    activations = choose_activations(options, device, dtype, kv_dtype, weights)
    weights = weights.for_inputs(activations)
    codec, encoder = configs.codec, configs.encoder
    encoder_dtype = dtype if options.codec_dtype == "auto" else options.codec_dtype
    fixed = {
        "audio_encoder_bytes": 0 if encoder is None else encoder.num_parameters * dtype_bytes(encoder_dtype),
        "weight_bytes": weights.num_bytes,
        "codec_bytes": 0 if codec is None else codec.output_bytes(codec_dtype),
        "speech_tokenizer_bytes": 0 if codec is None else codec.encoder_bytes(tokenizer_dtype),
    }

    # What each session needs: its pages, its slot of the codec, its row of the step on a GPU.
    kv_page = _page_bytes(configs.model, dtype, kv_dtype)
    kv_session = pages_for(model_len, PAGE_SIZE) * kv_page
    voice_slot = 0 if codec is None else codec.slot_bytes(codec_dtype, options.streaming)
    step_row = 0
    if device.type == "cuda":
        rows = options.max_sessions or MOST_SESSIONS["cuda"]
        step_row = _step_bytes(configs.model, weights, rows, model_len)

    memory = available_bytes(device)
    left = max(0, int(memory * options.memory_fraction) - sum(fixed.values()))
    fitting = left // (kv_session + voice_slot + step_row)
    return MemoryPlan(
        **fixed,
        kv_bytes_per_token=kv_page // PAGE_SIZE,
        kv_bytes_per_session=kv_session,
        voice_bytes_per_session=voice_slot,
        step_bytes_per_session=step_row,
        memory_bytes=memory,
        max_model_len=model_len,
        sessions=min(fitting, options.max_sessions or fitting),
        device=str(device),
        dtype=dtype,
        codec_dtype=codec_dtype,
        speech_tokenizer_dtype=tokenizer_dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        audio_encoder_dtype=encoder_dtype,
        activations=activations,
    )


def _step_bytes(config: ModelConfig, weights: ModelWeights, rows: int, model_len: int) -> int:
    """Bytes of a row's share of the buffers of the step on a GPU, rounded up."""
    from innervoice.model.device_step import Buffers
    from innervoice.model.transformer import Transformer

    model = Transformer(config, weights)
    return -(-Buffers.allocate(model, rows, model_len, PAGE_SIZE).num_bytes // rows)


def _codec_dtypes(asked: str, device: torch.device, dtype: str) -> tuple[str, str]:
    """Of the speech decoder and of the speech tokenizer.

    Rounding turns some frames' nearest code into another: not unasked.
    """
    if asked != "auto":
        return asked, asked
    return "bfloat16" if device.type == "cuda" and dtype != "float32" else "float32", "float32"


def _blank_weights(
    configs: Configs, gguf: GgufSource | None, dtype: str, quantization: Quantization | None
) -> ModelWeights:
    """Their shapes and types, on torch's meta device."""
    dtype_bytes(dtype)
    blank: WeightSource = BlankSource(quantization)
    if quantization is None and gguf is not None:
        blank = gguf.blank()
    weights = configs.family.load_weights(configs.model, blank, DTYPES[dtype], "meta")
    if isinstance(blank, GgufSource):
        blank.check_all_read()
    return weights


def _page_bytes(model: ModelConfig, dtype: str, kv_dtype: str) -> int:
    if kv_dtype not in (dtype, FP8_PAGES):
        raise ValueError(
            f"kv_dtype is {kv_dtype!r}: keys and values are kept in the model's own dtype, {dtype}, or {FP8_PAGES}"
        )
    shape = {"num_layers": model.num_layers, "num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim}
    return page_bytes(cast(PageFormat, kv_dtype), PAGE_SIZE, **shape)
