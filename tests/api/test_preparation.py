"""Requests are refused by the files of config and tokenizer alone, in the words of the loaded engine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Engine, EngineOptions, Ids, OutOfCapacity, Sampling, Schedule, Segment, Text
from innervoice.api.preparation import Prepared, prepare
from innervoice.tools.cli.main import main

OPTIONS = EngineOptions(device="cpu", dtype="float32", max_model_len=256, max_sessions=1)
RECORDING = (np.zeros(16000, np.float32), 16000)
TEXT = Text("hello")
WRONG: list[tuple[Any, dict[str, Any]]] = [
    (TEXT, {"schedule": "no_such_preset"}),
    (TEXT, {"schedule": "missing.json"}),
    (TEXT, {"schedule": Schedule(cycle=(Segment("reflection", 5),), tokens={"open": "<|nothing|>"})}),
    (TEXT, {"schedule": Schedule(cycle=(Segment("forced", ids=(10**6,)), Segment("speech", 5)))}),
    (TEXT, {"sampling": Sampling}),
    (TEXT, {"output_rate": 1}),
    (TEXT, {"reflection_caps": [-1]}),
    (TEXT, {"timeout_s": 0}),
    (TEXT, {"no_such_option": 1}),
    (Text(" \n"), {}),
    (Text("a b " * 500), {}),
    (Ids([]), {}),
    (Ids([10**6]), {}),
    (Ids([1] * 256), {}),
]


def without_weights(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.pt"))
    return target


@pytest.fixture(scope="module")
def prepared(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(without_weights(tiny_dir, tmp_path_factory.mktemp("prepared") / "tiny"), OPTIONS)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, OPTIONS) as made:
        yield made


@pytest.mark.parametrize(("prompt", "request_options"), WRONG, ids=range(len(WRONG)))
def test_a_request_is_refused_without_weights_as_with_them(
    prepared: Prepared, engine: Engine, prompt: Any, request_options: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as late:
        engine.stream(prompt, **request_options)
    with pytest.raises(type(late.value)) as early:
        prepared.check(prompt, **request_options)
    assert str(early.value).replace(str(prepared.paths.model), "") == str(late.value).replace(
        str(engine.parts.requests.tokenizer), ""
    )


def test_what_the_engine_answers_passes(prepared: Prepared, engine: Engine) -> None:
    for prompt in (TEXT, Ids([1, 2]), RECORDING):
        prepared.check(prompt, schedule="stitch_s", realtime=False)
        assert engine.generate(prompt, schedule="stitch_s", sampling=Sampling(max_new_tokens=2)).ids


def test_a_model_that_does_not_hear_refuses_recordings(prepared: Prepared, tmp_path: Path) -> None:
    deaf = prepare(prepared.paths.model, OPTIONS)
    assert deaf.paths.speech_tokenizer is None
    with pytest.raises(ValueError, match="needs a speech tokenizer"):
        deaf.check(RECORDING)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_model_len": 10**6}, "max_model_len is 1000000"),
        ({"kv_dtype": "float16"}, "kv_dtype is 'float16'"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"memory_fraction": 1e-9}, "the model does not fit"),
    ],
)
def test_options_are_refused_before_weights_are_read(prepared: Prepared, changes: Any, words: str) -> None:
    with pytest.raises((ValueError, OutOfCapacity), match=words):
        Engine.from_pretrained(prepared.paths.model.parent, OPTIONS.changed(**changes))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--text", "hi", "--schedule", "no_such"], "no_such"),
        (["--text", " "], "the prompt's text is empty"),
        (["--text", "hi " * 400, "--max-model-len", "256"], "tokens and the cache holds"),
        (["--text", "hi", "--max-model-len", "1000000"], "max_model_len is 1000000"),
    ],
)
def test_generate_refuses_before_weights_are_read(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, more: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(prepared.paths.model.parent)
    assert main(["generate", "--model", model, "--device", "cpu", *more]) == 2
    assert words in capsys.readouterr().err
    assert main(["generate", "--model", model, "--device", "cpu", "--text", "hi"]) == 2
    assert "safetensors" in capsys.readouterr().err  # here the weights are missed
    assert list(tmp_path.iterdir()) == []
