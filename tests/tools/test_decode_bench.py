"""The decode loop that is timed: it decodes what the engine decodes, and the command that times it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from innervoice.api.options import EngineOptions
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.transformer import AttentionInputs
from innervoice.telemetry.trace import Tracer
from innervoice.tools.cli.main import app, main
from innervoice.tools.decode_bench import (
    DecodeModel,
    HostLoop,
    make_loop,
    step_bytes,
    step_flops,
    time_prefill,
    time_steps,
)


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> DecodeModel:
    return DecodeModel.load(tiny_dir / "glm-4-voice-9b", EngineOptions(device="cpu"))


def test_bytes_and_flops_of_glm_4_voice(tiny_dir: Path) -> None:
    """8.850 G weights a token, 40,960 bytes of cache a token: the numbers of the published shape."""
    shape = {
        "family": "glm4_voice", "num_layers": 40, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 2, "head_dim": 128,
        "ffn_size": 13696, "vocab_size": 168960, "norm_eps": 1e-5, "rotary_dim": 64, "rope_theta": 1e4, "rope_interleaved": True,
        "qkv_bias": True, "tied": False, "max_position": 8192, "dtype": "bfloat16",
    }  # fmt: skip
    config = ModelConfig(**shape)
    assert step_bytes(config, "bfloat16", 1, 0) == pytest.approx(17.70e9, rel=1e-3)
    assert step_bytes(config, "bfloat16", 8, 2048) - step_bytes(config, "bfloat16", 8, 2047) == 8 * 40960
    assert step_flops(config, 1, 0) == pytest.approx(2 * 8.85e9, rel=1e-3)
    assert step_flops(config, 2, 100) - step_flops(config, 2, 0) == 2 * 4 * 100 * 32 * 128 * 40


def test_the_loop_decodes_greedily_behind_its_context(model: DecodeModel) -> None:
    loop = make_loop(model, 2, 30, 4, Tracer())
    assert isinstance(loop, HostLoop)
    seconds = time_steps(loop, torch.device("cpu"), steps=3, warmup=1, tracer=Tracer())
    ids = loop.finish()
    assert len(seconds) == 3 and all(s > 0 for s in seconds) and [len(row) for row in ids] == [4, 4]
    again = make_loop(model, 2, 30, 1, Tracer())
    kv, table = again._runner.kv, again._rows[1].table
    k, v = kv.k.clone(), kv.v.clone()
    again.step()
    kv.k.copy_(k), kv.v.copy_(v)
    one = torch.tensor([1], dtype=torch.int32)
    inputs = AttentionInputs(
        positions=torch.tensor([30]),
        slots=torch.tensor([table.pages[1] * 16 + 14]),
        page_table=torch.tensor([table.pages], dtype=torch.int32),
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        context_len=31 * one,
    )
    hidden = model.transformer.forward(torch.tensor([31]), inputs, kv)
    assert int(model.transformer.logits(hidden).argmax()) == again.finish()[1][0] == ids[1][0]


def test_prefill_is_timed(model: DecodeModel) -> None:
    assert len([s for s in time_prefill(model, 40, 2, Tracer()) if s > 0]) == 2


@pytest.mark.parametrize("sizes", [(0, 5, 1), (1, 0, 1), (1, 5, 0)])
def test_sizes_are_checked(model: DecodeModel, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="each must be 1 or more"):
        make_loop(model, *sizes, Tracer())


def test_the_command_times_and_traces(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_dir / "glm-4-voice-9b" / "config.json").read_text())
    words = [
        "bench",
        "decode",
        "--model",
        str(tmp_path),
        "--load-format",
        "dummy",
        "--device",
        "cpu",
        "--batch",
        "2",
    ]
    words += ["--context", "20", "--steps", "3", "--warmup", "1", "--prefill", "10"]
    words += ["--trace", str(tmp_path / "trace.json"), "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["steps"] == 3 and found["batch"] == 2 and found["prefill_ms"] > 0
    assert found["decode_tok_s"] == pytest.approx(2e3 / found["step_ms"])
    assert found["step_ms_p10"] <= found["step_ms"] <= found["step_ms_p90"]
    names = [event["name"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert names.count("forward") == names.count("sample") == 4


@pytest.mark.parametrize("option", ["--json", "--trace"])
@pytest.mark.parametrize("place", ["nowhere/out.json", "."])
def test_outputs_are_refused_before_the_work(
    option: str, place: str, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DecodeModel, "load", lambda *_: pytest.fail("it began to work"))
    other = {"--json": "--trace", "--trace": "--json"}[option]
    words = ["bench", "decode", "--model", str(tiny_dir), option, place, other, "whole.json"]
    assert main(words) == 2
    assert main([*words[:-4], option, "same.json", other, "same.json"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load_format": "fast"}, "load_format is 'fast'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_bad_choices_are_named(tiny_dir: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeModel.load(tiny_dir / "glm-4-voice-9b", EngineOptions(**{"device": "cpu"} | change))
