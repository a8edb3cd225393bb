"""Does it fit? Bytes of weights, cache and codec from the config files alone, and how many sessions the
memory carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from innervoice.api.available_memory import available_bytes
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.gguf import MODEL
from innervoice.checkpoint.locate import CheckpointPaths
from innervoice.checkpoint.model_config import ModelConfig, dtype_bytes
from innervoice.checkpoint.quantization import Quantization, as_quantization, read_quantization
from innervoice.codec.registry import read_speech_codec
from innervoice.codec.speech_codec import SpeechCodec
from innervoice.model.device_step import Buffers
from innervoice.model.families import Family, family_of
from innervoice.model.gguf_source import GgufSource
from innervoice.model.pages import FP8_PAGES, PageFormat, page_bytes, pages_for
from innervoice.model.quant_source import BlankSource, WeightSource
from innervoice.model.transformer import Transformer
from innervoice.model.weights import ModelWeights

PAGE_SIZE = 16
DEFAULT_MODEL_LEN = 8192
MOST_SESSIONS = {"cpu": 16, "cuda": 256}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Configs:
    """The config files of a model, read and checked against each other.

    quantization: of the weights in the file.
    """

    family: Family
    model: ModelConfig
    codec: SpeechCodec | None
    quantization: Quantization | None = None

    @property
    def num_codes(self) -> int | None:
        """Size of the speech codebook, None without speech."""
        return None if self.codec is None else self.codec.num_codes


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by use; sessions: how many of max_model_len tokens each fit at once (0: the weights alone are too
    large).

    memory_bytes: what the device had left when the plan was made; memory_fraction of it may be used.
    voice_bytes_per_session: a slot of `steady` streaming, 0 without a decoder or in another streaming.
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

    @property
    def fixed_bytes(self) -> int:
        """Bytes that are needed before the first session."""
        return self.weight_bytes + self.codec_bytes + self.speech_tokenizer_bytes


def read_configs(paths: CheckpointPaths) -> Configs:
    """Read the config files.

    Raises FileNotFoundError, and ValueError when one is not supported or the parts do not match.
    """
    source = paths.model / "config.json"
    data, quantization = read_quantization(read_json(source), source)
    family = family_of(data, source)
    codec = read_speech_codec(paths.speech_tokenizer, paths.decoder)
    return Configs(family, family.read_config(data, source), codec, quantization)


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


def make_plan(paths: CheckpointPaths, options: EngineOptions | None = None) -> MemoryPlan:
    """The plan for a checkpoint on this machine; nothing is loaded. Raises ValueError, FileNotFoundError."""
    options = options or EngineOptions()
    configs = read_configs(paths)
    device = choose_device(options.device)
    model_len = _model_len(options.max_model_len, configs.model)

    # Types and formats, with "auto" resolved.
    quantization = _quantization(paths, configs, options.quantization)
    dtype = configs.model.dtype if options.dtype == "auto" else options.dtype
    kv_dtype = dtype if options.kv_dtype == "auto" else options.kv_dtype
    codec_dtype, tokenizer_dtype = _codec_dtypes(options.codec_dtype, device, dtype)

    # What is needed once, whatever the number of sessions.
    weights = _blank_weights(paths, configs, dtype, quantization)
    codec = configs.codec
    fixed = {
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
        step_row = _step_bytes(Transformer(configs.model, weights), rows, model_len)

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
    )


def _model_len(wanted: int | None, model: ModelConfig) -> int:
    """Tokens that a session may have. Raises ValueError for more than the model takes."""
    if wanted is None:
        return min(model.max_position, DEFAULT_MODEL_LEN)
    if not 1 <= wanted <= model.max_position:
        raise ValueError(f"max_model_len is {wanted}: the model takes 1 to {model.max_position} tokens")
    return wanted


def _step_bytes(model: Transformer, rows: int, model_len: int) -> int:
    """Bytes of a row's share of the buffers of the step on a GPU, rounded up."""
    return -(-Buffers.allocate(model, rows, model_len, PAGE_SIZE).num_bytes // rows)


def _codec_dtypes(asked: str, device: torch.device, dtype: str) -> tuple[str, str]:
    """Of the speech decoder and of the speech tokenizer.

    Rounding turns some frames' nearest code into another: not unasked.
    """
    if asked != "auto":
        return asked, asked
    return "bfloat16" if device.type == "cuda" and dtype != "float32" else "float32", "float32"


def _quantization(
    paths: CheckpointPaths, configs: Configs, wanted: str | Quantization | None
) -> Quantization | None:
    """The format that weights will have. Raises ValueError where the file has another than is wanted."""
    asked = as_quantization(wanted)
    if configs.quantization is None or asked in (None, configs.quantization):
        return configs.quantization or asked
    raise ValueError(
        f"{paths.model} is quantised already, as {configs.quantization}, not {asked}: leave quantization out"
    )


def _blank_weights(
    paths: CheckpointPaths, configs: Configs, dtype: str, quantization: Quantization | None
) -> ModelWeights:
    """Their shapes and types, on torch's meta device."""
    dtype_bytes(dtype)
    file = paths.model / MODEL
    blank: WeightSource = BlankSource(quantization)
    if quantization is None and file.exists():
        blank = GgufSource(file, blank=True)
    return configs.family.load_weights(configs.model, blank, DTYPES[dtype], "meta")


def _page_bytes(model: ModelConfig, dtype: str, kv_dtype: str) -> int:
    if kv_dtype not in (dtype, FP8_PAGES):
        raise ValueError(
            f"kv_dtype is {kv_dtype!r}: keys and values are kept in the model's own dtype, {dtype}, or {FP8_PAGES}"
        )
    shape = {"num_layers": model.num_layers, "num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim}
    return page_bytes(cast(PageFormat, kv_dtype), PAGE_SIZE, **shape)
