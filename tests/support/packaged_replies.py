"""Replies of the packaged model, as they were when it was packaged: `python tests/support/packaged_replies.py` notes them.

Ids whole, and of the sound, without the vocoder's noise, every 16th sample.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from paths import ROOT

from innervoice import Engine, Sampling
from innervoice.files import packaged_questions
from innervoice.tools.packaged import packaged_load

PATH = ROOT / "tests" / "data" / "mini" / "replies.npz"
EVERY = 16
GREEDY = Sampling(temperature=0.0, max_new_tokens=600)
# (question, schedule) of each reply
CASES = ((0, "reempathy"), (1, "reempathy"), (2, "reempathy"), (0, "think_first"), (2, "interleaved"))


def replies() -> dict[str, np.ndarray]:
    """Ids [N] and samples [T / 16] of each case, by number and name."""
    questions = packaged_questions()
    load = packaged_load({"device": "cpu", "dtype": "float32", "vocoder_noise": False})
    found: dict[str, np.ndarray] = {}
    with Engine.from_pretrained(**load) as engine:
        for number, (question, schedule) in enumerate(CASES):
            reply = engine.generate(questions[question].path, schedule=schedule, sampling=GREEDY)
            found[f"{number}.ids"] = np.array(reply.ids, np.int32)
            found[f"{number}.samples"] = np.asarray(reply.audio.samples, np.float16)[::EVERY]
    return found


def write(path: Path = PATH) -> None:
    """Note the replies of now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **replies())


if __name__ == "__main__":
    write()
