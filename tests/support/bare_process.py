"""A reply in a process that has next to nothing: its directory is removed, threads get 32 KiB of stack, there are 24
file descriptors, no home and no temporary files, and warnings are errors.

Usage: bare_process.py MODEL FOLDER removes FOLDER and prints [ids, samples] as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import warnings
from pathlib import Path


def strip(folder: str) -> None:
    """Take from the process what it can do without."""
    os.chdir(folder)
    os.rmdir(folder)
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ["TMPDIR"] = folder
    threading.stack_size(32768)
    warnings.simplefilter("error")


def main(model: str, folder: str) -> None:
    """Reply to the recording beside the model."""
    sys.path[:] = [os.path.abspath(one) for one in sys.path]
    strip(folder)
    from innervoice import Engine, Sampling

    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    sampling = Sampling(temperature=0.0, max_new_tokens=40, seed=1)
    with Engine.from_pretrained(model, threads=1, vocoder_noise=False) as engine:
        reply = engine.generate(Path(model).parent / "question.wav", sampling=sampling)
    print(json.dumps([reply.ids, reply.audio.samples.tolist()]))


if __name__ == "__main__":
    main(*sys.argv[1:])
