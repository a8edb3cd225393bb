"""llama.cpp as a peer: a model in a process of its own, timed on request, so that it and we take turns.

Run by a Python that has llama-cpp-python: `python llama_cpp.py MODEL.gguf THREADS CONTEXT`. It reads lines, `prefill N` or
`decode N`, and answers with seconds: of one prompt of N tokens from an empty cache, or of N single tokens behind what is there,
each the likeliest after the one before. Its first line is its system information, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path


class Server:
    """The peer's end of the pipe."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        # This file may be found as llama_cpp: its folder comes first in a script's path.
        sys.path.pop(0)
        import llama_cpp

        self.api = llama_cpp
        self.quiet = llama_cpp.llama_log_callback(
            lambda *_: None
        )  # kept: it is called as long as the model is there
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.last = 5

    def feed(self, tokens: list[int]) -> int:
        """The likeliest id behind the tokens."""
        array = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")
        import numpy as np

        logits = self.api.llama_get_logits_ith(self.context, -1)
        return int(
            np.ctypeslib.as_array(
                ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,)
            ).argmax()
        )

    def prefill(self, count: int) -> float:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        tokens = [1 + i % 1000 for i in range(count)]
        begin = time.perf_counter()
        self.last = self.feed(tokens)
        return time.perf_counter() - begin

    def decode(self, count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            self.last = self.feed([self.last])
        return time.perf_counter() - begin

    def serve(self) -> None:
        print(
            json.dumps(
                {"system": self.api.llama_print_system_info().decode(), "version": self.api.__version__}
            ),
            flush=True,
        )
        for line in sys.stdin:
            what, count = line.split()
            print({"prefill": self.prefill, "decode": self.decode}[what](int(count)), flush=True)


def check_python(python: str) -> None:
    """Raise SystemExit where a Python is none, or has no llama-cpp-python that can be imported."""
    try:
        done = subprocess.run(
            [python, "-c", "import llama_cpp"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"--llama-python {python} does not run: {error}") from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise SystemExit(
            f"--llama-python {python} has no llama-cpp-python ({reason}): install it there, or leave the option out"
        )


class LlamaCpp:
    """Our end: starts the process and asks it. Raises RuntimeError when it does not answer."""

    def __init__(self, python: str, model: Path, threads: int, context: int) -> None:
        command = [python, __file__, str(model), str(threads), str(context)]
        # In a session of its own: an interruption ends this process, and the peer when its input does.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.info = json.loads(self._answer())

    def ask(self, what: str, count: int) -> float:
        """Seconds of `prefill` or `decode`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp's process ended with {self._process.wait()}")
        return line


if __name__ == "__main__":
    Server(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).serve()
