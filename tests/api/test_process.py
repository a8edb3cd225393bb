"""An engine and its process: every way out, forks, memory over many engines, and state that others change."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from ways_out import WAYS

from innervoice import Engine, Reply, Sampling, Text

GREEDY = Sampling(temperature=0.0, max_new_tokens=40, seed=1)
USUAL = ["sys.exit", "many replies", "patient reader", "pushed audio"]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a program of tests/support."""
    command = [sys.executable, str(ROOT / "tests" / "support" / script), *map(str, arguments)]
    folders = [str(ROOT / name) for name in ("engine", "kernels", "tests/support")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)


def check_ways_out(model: Path, threads: tuple[int, ...], names: list[str]) -> None:
    running = [start("ways_out.py", model, number, *names) for number in threads]
    found = [json.loads(one.communicate()[0]) for one in running]
    expected = {name: WAYS[name][1] for name in names}
    assert [{name: code for name, (code, _) in one.items()} for one in found] == [expected] * len(threads)
    errors = [text for one in found for _, text in one.values()]
    assert [text for text in errors if "terminate called" in text or "innervoice-" in text] == []


def test_the_exit_code_stays_the_programs(tiny_dir: Path) -> None:
    check_ways_out(tiny_dir, (2,), USUAL)


@pytest.mark.slow
def test_every_way_out_with_any_number_of_threads(tiny_dir: Path) -> None:
    check_ways_out(tiny_dir, (1, 2, 0), list(WAYS))


@pytest.mark.slow
def test_a_forked_process_is_refused_and_the_parent_goes_on(tiny_dir: Path) -> None:
    found = json.loads(start("forked.py", tiny_dir, 1).communicate()[0])
    parent, child = f"process {found['parent']}", f"process {found['child']}"
    named = {
        "Engine.generate",
        "Engine.close",
        "Session.reply",
        "Session.areply",
        "Session.close",
        "Stream.areply",
    }
    assert named <= found["calls"].keys() and len(found["calls"]) > 40
    assert {
        name: text
        for name, text in found["calls"].items()
        if not (text.startswith("EngineDead") and parent in text and child in text)
    } == {}
    codes = [found[name] for name in ("report", "use_with", "drop", "load_anew", "multiprocessing")]
    assert codes == [7, 7, 7, 7, 0]
    assert found["goes on"][:2] == [True, "length"]


def test_an_engine_is_not_sent_to_another_process(tiny_dir: Path) -> None:
    with Engine.from_pretrained(tiny_dir, threads=1) as engine, engine.open_session() as session:
        stream = engine.stream(Text("x"), sampling=GREEDY)
        for one in (engine, session, stream):
            with pytest.raises(TypeError, match="cannot be sent to another process: load an engine there"):
                pickle.dumps(one)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dropped"])
def test_memory_threads_and_files_stay_over_many_engines(tiny_dir: Path, closes: bool) -> None:
    """Without the garbage collection, and with every closed engine still referred to."""
    kept, sizes, counts = list[Engine](), list[int](), list[tuple[int, int]]()
    gc.disable()
    try:
        for _ in range(8):
            engine = Engine.from_pretrained(tiny_dir, threads=1)
            engine.generate((np.full(16000, 0.1, np.float32), 16000), sampling=GREEDY)
            threads = [one for one in threading.enumerate() if one.name.startswith("innervoice-")]
            if closes:
                engine.close()
                kept.append(engine)
            del engine
            for thread in threads:
                thread.join(30)
            sizes.append(resident())
            counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    finally:
        gc.enable()
    assert sizes[-1] < 1.05 * sizes[3]
    assert counts[-1] == counts[3]
    for engine in kept:
        with pytest.raises(ValueError, match="the engine is closed"):
            engine.generate(Text("x"))
        assert engine.default_sampling() and engine.plan() and engine.model_id and engine.stats()


def test_a_stream_keeps_its_engine_running(tiny_dir: Path) -> None:
    reply = Engine.from_pretrained(tiny_dir, threads=1).stream(Text("x"), sampling=GREEDY).reply()
    assert reply.finish_reason in ("length", "stop")


def test_a_bare_process_replies_as_any_other(tiny_dir: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    found = json.loads(start("bare_process.py", tiny_dir, gone).communicate()[0])
    with Engine.from_pretrained(tiny_dir, threads=1, vocoder_noise=False) as engine:
        reply = engine.generate(tiny_dir.parent / "question.wav", sampling=GREEDY)
    assert found == [reply.ids, reply.audio.samples.tolist()]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def flipping() -> Iterator[None]:
    """Another thread changes torch's default dtype all the time."""
    over = threading.Event()

    def flip() -> None:
        while not over.wait(0.0005):
            torch.set_default_dtype(torch.bfloat16)
            over.wait(0.0005)
            torch.set_default_dtype(torch.float64)

    thread = threading.Thread(target=flip)
    with default_dtype(torch.float32):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def strict() -> Iterator[None]:
    """Warnings and floating-point conditions are errors."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


STATES: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "flipping": flipping,
    "meta": lambda: torch.device("meta"),
    "grad": lambda: torch.enable_grad(),
    "inference": lambda: torch.inference_mode(),
    "strict": strict,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


USUAL_STATES = ("bfloat16", "autocast")


def spoken(tiny_dir: Path, streaming: str, state: Callable[[], Any]) -> list[Reply]:
    """Two replies of an engine: it is loaded in a state, in which the first reply is made, and not the second."""
    question = tiny_dir.parent / "question.wav"
    with state(), Engine.from_pretrained(tiny_dir, threads=1, streaming=streaming) as engine:
        within = engine.generate(question, sampling=GREEDY, schedule="interleaved")
        after = list[Reply]()
        thread = threading.Thread(  # which has none of the states of this one
            target=lambda: after.append(engine.generate(question, sampling=GREEDY, schedule="interleaved"))
        )
        thread.start()
        thread.join()
    return [within, *after]


def check_state(tiny_dir: Path, streaming: str, states: Iterable[str]) -> None:
    expected, _ = spoken(tiny_dir, streaming, nullcontext)
    for state in states:
        replies = spoken(tiny_dir, streaming, STATES[state])
        assert [reply.ids for reply in replies] == [expected.ids] * 2, state
        for reply in replies:
            assert np.array_equal(reply.audio.samples, expected.audio.samples), state


def test_state_that_others_change_changes_nothing(tiny_dir: Path) -> None:
    check_state(tiny_dir, "steady", USUAL_STATES)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["steady", "offline", "reference"])
def test_no_state_changes_anything_in_any_streaming(tiny_dir: Path, streaming: str) -> None:
    check_state(tiny_dir, streaming, STATES)
