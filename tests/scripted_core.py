"""A core under a virtual clock whose model and voice are scripted: logits are a hash of what lies in a row's pages.

Whatever pages, prefixes, chunks, preemption, forks and cuts do to a row, a token comes out right only if every token before it
lies where the row's page table says. Costs are those of a small machine, so that deadlines matter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from innervoice.batch import Row
from innervoice.blocks import PagePool
from innervoice.core import Core
from innervoice.running import Request
from innervoice.schedule import Program, Schedule, compile_schedule
from innervoice.scheduler import SchedulerSettings
from innervoice.trace import Tracer
from innervoice.types import AudioChunk, Done, Event, Sampling, TokenEvent, Vocabulary
from innervoice.voice import Ready

VOCABULARY = Vocabulary(size=48, text=(0, 21), speech=(24, 44), end_of_turn=44, open=45, close=46, done=47, eos=(44,))
POISON, NAN, MUTE = 21, 22, 40  # a prompt id whose step raises, one that gives NaN; a speech id that breaks the voice
PAGE = 4
RATE, CODES_PER_S, SAMPLES = 250.0, 12.5, 20
FIRST, CHUNK = 4, 10


def program(schedule: Schedule) -> Program:
    """A schedule over the scripted vocabulary."""
    return compile_schedule(schedule, VOCABULARY)


@dataclass
class Kept:
    """Pages off the device."""

    contents: list[list[int]]
    num_tokens: int


class ScriptedRunner:
    """A model that says what its pages make it say. steady: it ends nothing by itself, and breaks no voice."""

    def __init__(self, num_pages: int, *, steady: bool) -> None:
        self.steady = steady
        self.pages = [[-1] * PAGE for _ in range(num_pages)]
        self.is_broken = False
        self.num_fed = 0

    def warmup(self) -> None:
        pass

    def copy_page(self, source: int, target: int) -> None:
        self.pages[target] = list(self.pages[source])

    def save_pages(self, row: Row) -> Kept:
        used = row.table.pages[: -(-row.num_cached // PAGE)]
        return Kept([list(self.pages[page]) for page in used], row.num_cached)

    def load_pages(self, row: Row, saved: Kept) -> None:
        if saved.num_tokens <= row.num_cached:
            return
        for index in range(row.num_cached // PAGE, len(saved.contents)):
            self.pages[row.table.pages[index]] = list(saved.contents[index])
        row.num_cached = saved.num_tokens

    def forward(self, rows: Sequence[Row], outputs: object = None) -> Tensor:
        if self.is_broken:
            raise RuntimeError("the device is lost")
        for row in rows:
            new = row.ids[row.num_cached : row.end]
            assert new and row.end <= row.table.capacity, "a row without tokens or pages"
            if POISON in new:
                raise RuntimeError("this row is poisoned")
        logits = []
        for row in rows:
            for position in range(row.num_cached, row.end):
                self.pages[row.table.pages[position // PAGE]][position % PAGE] = row.ids[position]
            self.num_fed += row.num_new
            seen = [self.pages[row.table.pages[i // PAGE]][i % PAGE] for i in range(row.end)]
            noise = np.random.default_rng(zlib.crc32(np.array(seen, np.int32).tobytes())).standard_normal(VOCABULARY.size)
            if self.steady:
                noise[24:] -= 9.0  # text goes on while it may
                noise[[MUTE, 44, 46, 47]] -= 9.0
            noise[MUTE] -= 0.5  # seldom
            logits.append(torch.from_numpy(noise * (np.nan if NAN in seen else 3.0)).float())
            row.num_cached = row.end
        return torch.stack(logits)


class ScriptedVoice:
    """Twenty samples a code, that depend on the code and its place; chunks after FIRST codes, then every CHUNK."""

    sample_rate, codes_per_s = int(RATE), CODES_PER_S

    def __init__(self, max_slots: int) -> None:
        self.errors: dict[str, str] = {}
        self._max_slots = max_slots
        self._codes: dict[str, list[int]] = {}
        self._made: dict[str, int] = {}
        self._finished: set[str] = set()
        self._over: set[str] = set()

    @property
    def num_open(self) -> int:
        return len(self._codes)

    def next_border(self, num_codes: int) -> int:
        return FIRST if num_codes < FIRST else FIRST + ((num_codes - FIRST) // CHUNK + 1) * CHUNK

    def open(self, key: str) -> None:
        assert key not in self._codes and len(self._codes) < self._max_slots, "a slot is taken"
        self._codes[key], self._made[key] = [], 0

    def push(self, key: str, codes: Sequence[int]) -> None:
        assert key not in self._finished, "finished"
        self._codes[key] += codes

    def tick(self, key: str) -> None:
        assert key not in self._finished, "finished"

    def finish(self, key: str) -> None:
        self._finished.add(key)

    def _due(self, key: str) -> bool:
        border = self.next_border(self._made[key])
        return key not in self._over and (len(self._codes[key]) >= border or key in self._finished)

    def ready(self) -> list[Ready]:
        return [Ready(key, len(codes) - self._made[key]) for key, codes in self._codes.items() if self._due(key)]

    def step(self, keys: Collection[str]) -> list[tuple[str, Any, bool]]:
        chunks = []
        for key in keys:
            assert self._due(key), "nothing is due"
            codes, begin = self._codes[key], self._made[key]
            if MUTE - 24 in codes[begin:]:
                self.errors[key] = "this voice broke"
                self._over.add(key)
                chunks.append((key, np.zeros(0, np.float32), True))
                continue
            is_last = key in self._finished
            end = len(codes) if is_last else max(b for b in range(len(codes) + 1) if b == FIRST or (b - FIRST) % CHUNK == 0)
            places = np.arange(begin * SAMPLES, end * SAMPLES)
            samples = np.sin(places * (1.0 + np.repeat(codes[begin:end], SAMPLES))).astype(np.float32)
            self._made[key] = end
            if is_last:
                self._over.add(key)
            chunks.append((key, samples, is_last))
        return chunks

    def close(self, key: str) -> None:
        del self._codes[key], self._made[key]
        self._finished.discard(key)
        self._over.discard(key)
        self.errors.pop(key, None)


class Letters:
    """Text ids are letters."""

    text_range = VOCABULARY.text

    def token_bytes(self, token: int) -> bytes:
        return bytes([97 + token]) if token < 21 else b""


@dataclass
class Told:
    """What a reply's reader got."""

    ids: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    pcm: list[Any] = field(default_factory=list)
    sound: list[tuple[float, float]] = field(default_factory=list)  # when, and how long
    done: Done | None = None

    @property
    def samples(self) -> Any:
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.float32)

    def take(self, event: Event) -> None:
        assert self.done is None, "an event after the last one"
        if isinstance(event, TokenEvent):
            self.ids += event.ids
            self.kinds += [event.kind] * len(event.ids)
        elif isinstance(event, AudioChunk):
            self.pcm.append(event.pcm)
            self.sound.append((event.t, len(event.pcm) / event.rate))
        elif isinstance(event, Done):
            self.done = event


class World:
    """A core, its clock, and what it told. step_s: of a step, by rows and fed tokens; voice_s: of a codec call, by chunks."""

    def __init__(
        self,
        num_pages: int = 64,
        max_rows: int = 8,
        step_s: Callable[[int, int], float] = lambda rows, fed: 0.01 + 0.002 * rows + 0.0005 * fed,
        voice_s: Callable[[int], float] = lambda chunks: 0.01 + 0.002 * chunks,
        max_model_len: int = 160,
        settings: Mapping[str, Any] | None = None,
        *,
        steady: bool = True,
        **core: Any,
    ) -> None:
        self.now = 100.0
        self.tracer = Tracer(lambda: round(1e9 * self.now))
        self.runner, self.voice = ScriptedRunner(num_pages, steady=steady), ScriptedVoice(max_rows)
        self.pool = PagePool(num_pages, PAGE)
        made = {"max_rows": max_rows, "page_size": PAGE, "prefill_chunk": 16, "max_batch": 64} | dict(settings or {})
        core = {"scheduler": SchedulerSettings(**made), "max_rows": max_rows, "max_model_len": max_model_len} | core
        self.core = Core(self.runner, self.pool, Letters(), self.voice, self.tracer, **core)  # type: ignore[arg-type]
        self.told: dict[str, Told] = {}
        self.requests: dict[str, Request] = {}
        self._step_s, self._voice_s = step_s, voice_s

    def request(self, reply_id: str, prompt: Sequence[int], schedule: Program, seed: int = 0, **request: Any) -> Request:
        """A greedy one, of 40 tokens at most where nothing else is said."""
        sampling = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=seed, max_new_tokens=request.pop("most", 40))
        return Request(reply_id, tuple(prompt), schedule, sampling, self.now, **{"is_live": True} | request)

    def submit(self, reply_id: str, prompt: Sequence[int], schedule: Program, seed: int = 0, **request: Any) -> None:
        made = self.request(reply_id, prompt, schedule, seed, **request)
        self.core.submit(made, self.now)
        self.requests[reply_id] = made
        self.told[reply_id] = Told()

    def drain(self) -> None:
        for event in self.core.drain(self.now):
            self.told[event.reply_id].take(event)

    def step(self) -> bool:
        """A step of tokens and one of sound, time passing as they cost; False: nothing could be done, and the clock went on."""
        tokens = self.core.step_tokens(self.now)
        if tokens.rows or tokens.prompt_tokens:
            took = self._step_s(tokens.rows, tokens.prompt_tokens)
            self.core.costs.observe_step(tokens.rows, tokens.prompt_tokens, took)
            self.now += took
        self.drain()
        sound = self.core.step_voice(self.now)
        if sound.chunks:
            took = self._voice_s(sound.chunks)
            self.core.costs.observe_voice(sound.chunks, took)
            self.now += took
        self.drain()
        if tokens.rows or tokens.prompt_tokens or sound.chunks:
            return True
        self.now = min(max(self.core.wake_s, self.now + 0.001), self.now + 0.5)
        return False

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return self.core.has_work

    def run(self, most: int = 5000) -> None:
        """Until nothing is left to do."""
        for _ in range(most):
            self.drain()
            if not self.has_work:
                return
            self.step()
        raise AssertionError(f"no end after {most} steps: {self.core.replies.waiting.keys()} {self.core.replies.active.keys()}")
