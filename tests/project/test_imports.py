"""Modules that an import and a command's --help load: none that they have no use for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import innervoice

# Libraries that take long to import, or that only some uses need.
HEAVY = {
    "torch", "triton", "safetensors", "soundfile", "soxr", "tokenizers", "transformers", "tiktoken", "jinja2",
    "huggingface_hub", "gguf", "starlette", "uvicorn", "prometheus_client",
}  # fmt: skip
COMMANDS = [
    [], ["demo"], ["generate"], ["serve"], ["plan"], ["replay"], ["simulate"], ["quantize"], ["env"], ["bench"],
    ["bench", "stream"], ["bench", "metrics"], ["bench", "decode"], ["codec"], ["codec", "encode"],
    ["codec", "decode"], ["codec", "roundtrip"],
]  # fmt: skip


# What only speech, a GPU or a log of events needs.
SPOKEN = (
    "innervoice.codec.glm_voice.decoder", "innervoice.codec.glm_voice.speech_tokenizer", "innervoice.codec.residual_vq",
    "innervoice.model.device_step", "innervoice.runtime.overlap", "innervoice.api.event_log", "innervoice.tools",
    "innervoice.server", "innervoice_kernels.speech_codec", "innervoice_kernels.residual_vq",
    "innervoice_kernels.language.attention_decode", "innervoice_kernels.sampling.sample_pick",
)  # fmt: skip


def loaded_after(code: str) -> list[set[str]]:
    """Each line that the code prints in a new process, a list of modules, as the packages in it."""
    return [{name.split(".")[0] for name in names} for names in modules_after(code)]


def modules_after(code: str) -> list[list[str]]:
    """Each line that the code prints in a new process, a list of modules."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_the_package_and_the_help_of_every_command_load_no_library_that_they_do_not_use() -> None:
    code = f"""
import json, sys
def show(): print(json.dumps(sorted(sys.modules)))
import innervoice
show()
from innervoice.tools.cli.main import main
for words in {COMMANDS!r}:
    assert main([*words, "--help"]) == 0
    show()
from innervoice import Engine
show()
"""
    package, *commands, engine = loaded_after(code)
    assert package & (HEAVY | {"numpy", "rich", "typer", "yaml"}) == set()
    assert len(commands) == len(COMMANDS)
    assert [words for words, loaded in zip(COMMANDS, commands, strict=True) if loaded & HEAVY] == []
    assert "torch" in engine and engine & {"transformers", "gguf", "uvicorn", "prometheus_client"} == set()


def test_refusals_load_no_torch_and_a_model_of_text_no_networks_of_speech(tiny_dir: Path) -> None:
    model = next(path.parent for path in tiny_dir.glob("*/generation_config.json"))
    refused = [["--schedule", "no_such"], ["--schedule", "interleaved"], ["--text", "word " * 20000]]
    code = f"""
import json, sys
def show(): print(json.dumps(sorted(sys.modules)))
import innervoice
engine = innervoice.Engine.from_pretrained({str(model)!r}, device="cpu", max_model_len=64)
show()
assert engine.generate(innervoice.Ids([1, 2]), sampling=innervoice.Sampling(max_new_tokens=2)).ids
engine.close()
"""
    refusals = f"""
import json, sys
from innervoice.tools.cli.main import main
for words in {refused!r}:
    assert main(["generate", "--text", "hi", "--model", {str(model)!r}, *words]) == 2
print(json.dumps(sorted(sys.modules)))
"""
    (loaded,) = modules_after(code)
    assert [name for name in loaded if name.startswith(SPOKEN)] == []
    (packages,) = loaded_after(refusals)
    assert packages & {"torch", "triton", "safetensors", "uvicorn"} == set()


def test_public_names_are_complete() -> None:
    assert set(innervoice.__all__) <= set(dir(innervoice))
    for name in innervoice.__all__:
        assert getattr(innervoice, name) is not None
    namespace: dict[str, object] = {}
    exec("from innervoice import *", namespace)
    assert set(innervoice.__all__) <= set(namespace)
    assert namespace["Plan"].__name__ == "MemoryPlan" and get_type_hints(namespace["Engine"]) is not None
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        _ = innervoice.Motor
    with pytest.raises(ImportError, match="Motor"):
        exec("from innervoice import Motor")
