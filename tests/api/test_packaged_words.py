"""The words of the packaged model's replies: a recogniser hears most of what the transcript says.

The recogniser and the word error rate are training's; `make slow` installs what they need.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

from innervoice import Engine, Sampling
from innervoice.files import packaged_questions
from innervoice.tools.packaged import packaged_load

pytestmark = pytest.mark.slow

MOST_WRONG = 0.2
SHOULD_NOTE = {"dog.flac": "worried", "miles.flac": "proud"}


@pytest.fixture(scope="module", autouse=True)
def training() -> None:
    """Makes the checkout's `training/` importable."""
    pytest.importorskip("ctranslate2", reason="the recogniser is not installed: `make slow` installs it")
    if "training" not in sys.modules:
        folder = Path(ROOT) / "training"
        spec = importlib.util.spec_from_file_location(
            "training", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["training"] = package
        spec.loader.exec_module(package)


def test_the_replies_to_the_packaged_questions_can_be_understood() -> None:
    from training.judge import word_error_rate
    from training.sources import judge_dir

    try:
        judge_dir()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the recogniser's model cannot be downloaded: {error}")
    texts: list[str] = []
    sounds: list[np.ndarray] = []
    with Engine.from_pretrained(**packaged_load({"device": "cpu", "dtype": "float32"})) as engine:
        for question in packaged_questions():
            reply = engine.generate(
                question.path,
                schedule="reempathy",
                sampling=Sampling(temperature=0.0, max_new_tokens=600),
            )
            assert reply.finish_reason == "stop"
            texts.append(reply.transcript)
            sounds.append(np.asarray(reply.audio.samples, np.float32))
            feeling = SHOULD_NOTE.get(question.path.name)
            assert feeling is None or feeling in reply.reflections[0]
    assert word_error_rate(sounds, texts, reply.audio.rate) <= MOST_WRONG
