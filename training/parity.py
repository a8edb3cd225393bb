"""The stage `check-tokenizer`: the engine's tokenizer, on the exported files, gives the codes that training
used.

This is the one place that imports the engine.
"""

from __future__ import annotations

import numpy as np

from training.export import export_tokenizer
from training.features.target import pieces
from training.workdir import Log, shards, stage_dir

MIN_EQUAL = 0.99


def check_tokenizer() -> None:
    """Compare the codes of all held-out recordings, which are clean, and log the share that is equal.

    Raises:
        RuntimeError: Less than `MIN_EQUAL` of them are.
    """
    from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer

    log = Log("check-tokenizer")
    tokenizer = SpeechTokenizer.from_pretrained(export_tokenizer())
    equal = total = 0
    for path in shards(stage_dir("tokens"), "*-test-*.npz"):
        with np.load(path) as tokens, np.load(stage_dir("audio") / path.name) as said:
            codes = pieces(tokens["codes"], tokens["num_tokens"])
            for piece, expected in zip(pieces(said["audio"], said["lengths"]), codes, strict=False):
                found = np.array(tokenizer.encode(piece.astype(np.float32) / 32768, int(said["rate"])))
                if len(found) == len(expected):
                    equal += int((found == expected).sum())
                total += len(expected)
    share = equal / max(1, total)
    log.write(event="parity", codes=total, equal=round(share, 5))
    if share < MIN_EQUAL:
        raise RuntimeError(f"only {share:.1%} of {total} codes are equal: train and engine hear differently")
