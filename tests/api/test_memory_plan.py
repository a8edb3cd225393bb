"""What a plan says of a GPU that is not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from innervoice.api import memory_plan as plan
from innervoice.api.configs import read_configs
from innervoice.api.memory_plan import DTYPES, PAGE_SIZE, MemoryPlan, make_plan
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.safetensors import DummyTensors
from innervoice.model.device_step import Buffers
from innervoice.model.transformer import Transformer

GIB = 2**30


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(plan, "available_bytes", lambda device: 8 * GIB)


def per_session(made: MemoryPlan) -> int:
    return made.kv_bytes_per_session + made.voice_bytes_per_session + made.step_bytes_per_session


def test_the_step_on_a_gpu_is_counted(tiny_dir: Path, on_a_gpu: None) -> None:
    """As large as what is really allocated, for the rows that an engine would have."""
    paths = locate(tiny_dir)
    made = make_plan(paths, EngineOptions(max_model_len=512))
    configs = read_configs(paths)
    model = Transformer(
        configs.model, configs.family.load_weights(configs.model, DummyTensors(), DTYPES[made.dtype], "cpu")
    )
    buffers = Buffers.allocate(model, 256, 512, PAGE_SIZE)
    assert made.step_bytes_per_session == -(-buffers.num_bytes // 256)
    assert made.step_bytes_per_session > 4 * configs.model.vocab_size  # logits
    assert made.sessions == (int(0.9 * 8 * GIB) - made.fixed_bytes) // per_session(made)


def test_fewer_rows_share_what_is_there_once(tiny_dir: Path, on_a_gpu: None) -> None:
    one, many = (make_plan(locate(tiny_dir), EngineOptions(max_sessions=n)) for n in (1, 64))
    assert (
        one.step_bytes_per_session > many.step_bytes_per_session and one.sessions == 1 and many.sessions == 64
    )


@pytest.mark.parametrize("to", ["int8", "int4", "fp8", None])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "float16"])
def test_auto_is_bfloat16_for_quantised_weights_of_a_float32_checkpoint(
    tiny_dir: Path, to: str | None, asked: str
) -> None:
    made = make_plan(locate(tiny_dir), EngineOptions(device="cpu", quantization=to, dtype=asked))
    assert made.dtype == ({None: "float32"}.get(to, "bfloat16") if asked == "auto" else asked)
    assert plan.choose_dtype("auto", "float16", True) == "float16"


def test_a_cpu_has_no_such_step(tiny_dir: Path) -> None:
    assert make_plan(locate(tiny_dir), EngineOptions(device="cpu")).step_bytes_per_session == 0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"dtype": "bfloat16"}, ("bfloat16", "float32")),
        ({"dtype": "float32"}, ("float32", "float32")),
        ({"dtype": "bfloat16", "codec_dtype": "float32"}, ("float32", "float32")),
        ({"dtype": "float32", "codec_dtype": "bfloat16"}, ("bfloat16", "bfloat16")),
    ],
)
def test_the_codec_on_a_gpu_runs_in_halves_as_the_model_does(
    tiny_dir: Path, on_a_gpu: None, asked: dict[str, str], expected: tuple[str, str]
) -> None:
    wide, made = (
        make_plan(locate(tiny_dir), EngineOptions(codec_dtype="float32")),
        make_plan(locate(tiny_dir), EngineOptions(**asked)),
    )  # type: ignore[arg-type]
    assert (made.codec_dtype, made.speech_tokenizer_dtype) == expected
    halves = tuple(dtype == "bfloat16" for dtype in expected)
    assert (
        made.codec_bytes < 0.6 * wide.codec_bytes,
        made.speech_tokenizer_bytes < 0.6 * wide.speech_tokenizer_bytes,
    ) == halves
