"""What the engine refuses, and how it says so: one sentence at the call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from innervoice import Engine, Ids, OutOfCapacity, Sampling, Schedule, ScheduleError, Text


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu") as made:
        yield made


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"prompt": Text("  ")}, ValueError, "the prompt's text is empty"),
        ({"prompt": Ids([])}, ValueError, "the prompt has no ids"),
        ({"prompt": Ids([512])}, ValueError, "prompt id 512 is outside the vocabulary of 512"),
        ({"prompt": "no/such.wav"}, FileNotFoundError, "no/such.wav"),
        ({"prompt": b"garbage"}, ValueError, "audio"),
        ({"prompt": Text("a"), "schedule": "stitch"}, ValueError, "unknown schedule 'stitch'"),
        ({"prompt": Text("a"), "schedule": Schedule(cycle=())}, ScheduleError, "schedule.cycle is empty"),
        ({"prompt": Text("a"), "timeout_s": 0}, ValueError, "timeout_s is 0"),
        ({"prompt": Text("a"), "reflection_caps": [-1]}, ValueError, "reflection_caps[0] is -1"),
    ],
)
def test_bad_requests_raise_at_the_call(
    engine: Engine, request_: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        engine.stream(**request_)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("seed", -1),
        ("max_new_tokens", 0),
        ("max_audio_s", -2),
    ],
)
def test_bad_sampling(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Sampling.{name} is {value}"):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_bad_places_and_options(tiny_dir: Path, tmp_path: Path, assets_dir: Path) -> None:
    def refused(error: type[Exception], message: str, *args: Any, **options: Any) -> None:
        with pytest.raises(error) as raised:
            Engine.from_pretrained(*args, **options)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)

    refused(FileNotFoundError, "does not exist", tmp_path / "nowhere")
    refused(FileNotFoundError, "is no checkpoint", tmp_path)
    refused(ValueError, "is a file", assets_dir / "question.wav")
    refused(ValueError, "device 'tpu'", tiny_dir, device="tpu")
    refused(ValueError, "dtype is 'int3': use auto, float32, bfloat16 or float16", tiny_dir, dtype="int3")
    refused(ValueError, "kv_dtype is 'int8'", tiny_dir, kv_dtype="int8")
    refused(ValueError, "kv_dtype is 'float16'", tiny_dir, kv_dtype="float16")
    refused(ValueError, "max_sessions is 0", tiny_dir, max_sessions=0)
    refused(ValueError, "max_model_len is -1", tiny_dir, max_model_len=-1)
    refused(ValueError, "max_model_len is 9999", tiny_dir, max_model_len=9999)
    refused(ValueError, "memory_fraction is 0", tiny_dir, memory_fraction=0)
    refused(ValueError, "threads is 0", tiny_dir, threads=0)
    refused(ValueError, "load_format is 'magic'", tiny_dir, load_format="magic")
    refused(ValueError, "streaming is 'magic'", tiny_dir, streaming="magic")
    refused(OutOfCapacity, "the model does not fit", tiny_dir, memory_fraction=1e-6)


def test_parts_that_do_not_belong_together(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "m")
    config = tmp_path / "m" / "glm-4-voice-tokenizer" / "config.json"
    config.write_text(config.read_text().replace('"quantize_vocab_size": 64', '"quantize_vocab_size": 65'))
    with pytest.raises(ValueError, match="65 speech codes"):
        Engine.from_pretrained(tmp_path / "m")
