"""The decode loop alone, timed: rows of a given context, random keys and values, no prompt, no codec.

On a GPU the device step (`DeviceStep`), elsewhere the runner and a draw, as the engine's loop does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import Any, Protocol

import torch

from innervoice.api.configs import read_configs
from innervoice.api.memory_plan import DTYPES, PAGE_SIZE, choose_device
from innervoice.api.options import EngineOptions
from innervoice.checkpoint.locate import CheckpointPaths, locate
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.checkpoint.safetensors import DummyTensors, TensorDir
from innervoice.model.device_step import DeviceStep, RowStart
from innervoice.model.kv_cache import KVCache
from innervoice.model.pages import PagePool, PageTable, pages_for
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole
from innervoice.model.transformer import Transformer
from innervoice.schedule import Program, Schedule, compile_schedule
from innervoice.telemetry.trace import Tracer
from innervoice.types import Sampling, Vocabulary
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.sampling.sample import Draw, sample

_SPARE = 8  # places behind the last step that is timed


@dataclass(frozen=True)
class DecodeModel:
    """A language model without its codec."""

    transformer: Transformer
    vocabulary: Vocabulary

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.transformer.weights.device

    @classmethod
    def load(cls, model: str | PathLike[str], options: EngineOptions | None = None) -> DecodeModel:
        """Read, or with load_format "dummy" make up, the weights. Raises ValueError, FileNotFoundError.

        options: load_format, device and dtype count.
        """
        options = options or EngineOptions()
        paths = CheckpointPaths(locate(model).model)
        configs = read_configs(paths)
        device = choose_device(options.device)
        dtype = configs.model.dtype if options.dtype == "auto" else options.dtype
        is_dummy = options.load_format == "dummy"
        source = DummyTensors() if is_dummy else TensorDir(paths.model)
        weights = configs.family.load_weights(configs.model, source, DTYPES[dtype], str(device))
        _, vocabulary = configs.family.load_text(paths.model, None, stand_in=is_dummy)
        return cls(Transformer(configs.model, weights.laid_out()), vocabulary)


def step_bytes(config: ModelConfig, dtype: str, rows: int, context: int) -> int:
    """Bytes that a decode step must move: all weights but the embedding table once, keys and
    values of all rows, and its own.
    """
    table = 0 if config.tied else config.vocab_size * config.hidden_size
    weights = config.weight_bytes(dtype) * (config.num_parameters - table) // config.num_parameters
    return weights + rows * (context + 1) * config.kv_bytes_per_token(dtype)


def step_flops(config: ModelConfig, rows: int, context: int) -> int:
    """Multiplications and additions of a decode step: two a weight, and four a key for every head's width."""
    weights = config.num_parameters - (0 if config.tied else config.vocab_size * config.hidden_size)
    return rows * (2 * weights + 4 * config.num_layers * config.num_heads * config.head_dim * context)


class Loop(Protocol):
    """Something that takes steps over a fixed batch."""

    def step(self) -> object:
        """Queue one step of all rows."""
        ...

    def finish(self) -> list[list[int]]:
        """Wait for all queued steps -> the ids of every row so far."""
        ...


class DeviceLoop:
    """Steps of the device, each read one step late. options: graphs, invariant and pdl of `DeviceStep`."""

    def __init__(
        self,
        model: DecodeModel,
        rows: int,
        context: int,
        steps: int,
        tracer: Tracer,
        *,
        schedule: Schedule | None = None,
        weighted: tuple[bool, ...] = (False,),
        **options: Any,
    ) -> None:
        self._rows = rows
        self._pending: list[Any] = []
        self._ids: list[list[int]] = [[] for _ in range(rows)]

        # A cache full of random numbers, and the step with its graphs captured.
        length = context + steps + _SPARE
        each = pages_for(length, PAGE_SIZE)
        kv = random_cache(model.transformer, rows * each)
        self.device_step = DeviceStep(
            model.transformer, kv, max_rows=rows, max_model_len=length, tracer=tracer, **options
        )
        self.device_step.warmup(weighted, buckets=(rows,))

        # Every row stands behind `context` tokens and decodes greedily.
        program = _program(schedule, model.vocabulary)
        sampling = Sampling(
            temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=steps + _SPARE, ignore_eos=True
        )
        for row in range(rows):
            pages = range(row * each, (row + 1) * each)
            token = row % model.transformer.config.vocab_size
            self.device_step.begin(row, RowStart(token, context, pages, program, sampling))

    def step(self) -> None:
        """Queue one step of all rows, and read the one before."""
        self._pending.append(self.device_step.step(self._rows))
        if len(self._pending) > 1:
            self._read()

    def finish(self) -> list[list[int]]:
        """Wait for all queued steps -> the ids of every row so far."""
        while self._pending:
            self._read()
        return self._ids

    def _read(self) -> None:
        for step in self.device_step.read(self._pending.pop(0)):
            for emitted in step:
                self._ids[emitted.row].append(emitted.token)


class HostLoop:
    """One forward pass and one greedy draw a step, eagerly."""

    def __init__(self, model: DecodeModel, rows: int, context: int, steps: int, tracer: Tracer) -> None:
        transformer, length = model.transformer, context + steps + _SPARE
        num_pages = rows * pages_for(length, PAGE_SIZE)
        pool = PagePool(num_pages, PAGE_SIZE)
        self._runner = ModelRunner(transformer, num_pages, PAGE_SIZE, tracer)
        fill_cache(self._runner.kv)
        self._vocabulary, self._tracer = model.vocabulary, tracer
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._rows = []
        for index in range(rows):
            row = Sequence(PageTable(pool))
            row.extend([(index + i) % transformer.config.vocab_size for i in range(context + 1)])
            row.table.grow(length)
            row.num_cached = context
            self._rows.append(row)

    def step(self) -> None:
        """One step of all rows."""
        logits = self._runner.forward(self._rows)
        with self._tracer.span("sample", rows=len(self._rows)):
            ids, _ = sample(logits, [Draw(((0, self._vocabulary.size),))] * len(self._rows))
        for row, mine, token in zip(self._rows, self._ids, ids.tolist(), strict=True):
            row.append(token, TokenRole.NEUTRAL, 0)
            mine.append(token)

    def finish(self) -> list[list[int]]:
        """The ids of every row so far."""
        return self._ids


def make_loop(
    model: DecodeModel, rows: int, context: int, steps: int, tracer: Tracer, **options: Any
) -> Loop:
    """The loop for where the model is. Raises ValueError for sizes below 1; options: of `DeviceLoop`."""
    if min(rows, context, steps) < 1:
        raise ValueError(
            f"decode of {rows} rows, {context} tokens of context, {steps} steps: each must be 1 or more"
        )
    if choose("step", model.transformer.weights.final_norm) == TRITON:
        return DeviceLoop(model, rows, context, steps, tracer, **options)
    return HostLoop(model, rows, context, steps, tracer)


def time_steps(loop: Loop, device: torch.device, steps: int, warmup: int, tracer: Tracer) -> list[float]:
    """Seconds of each step behind the warm-up, from the end of one to the end of the next."""
    on_gpu = device.type == "cuda"
    ends: list[Any] = []

    def mark() -> None:
        if on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            ends.append(event)
        else:
            ends.append(tracer.now_ns())

    for _ in range(warmup):
        loop.step()
    mark()
    for _ in range(steps):
        loop.step()
        mark()
    loop.finish()
    if on_gpu:
        torch.cuda.synchronize(device)
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(ends)]
    return [(b - a) / 1e9 for a, b in pairwise(ends)]


def time_prefill(model: DecodeModel, num_tokens: int, rounds: int, tracer: Tracer) -> list[float]:
    """Seconds of a forward pass over one prompt of so many tokens, logits of the last one included."""
    num_pages = pages_for(num_tokens, PAGE_SIZE)
    runner, pool = (
        ModelRunner(model.transformer, num_pages, PAGE_SIZE, tracer),
        PagePool(num_pages, PAGE_SIZE),
    )
    row = Sequence(PageTable(pool))
    row.extend([i % model.transformer.config.vocab_size for i in range(num_tokens)])
    row.table.grow(num_tokens)

    def once() -> float:
        row.num_cached = 0
        begin = tracer.now_ns()
        _wait(model.device)
        runner.forward([row])
        _wait(model.device)
        return (tracer.now_ns() - begin) / 1e9

    once()
    return [once() for _ in range(rounds)]


def random_cache(transformer: Transformer, num_pages: int) -> KVCache:
    """A cache full of normal numbers."""
    weights = transformer.weights
    kv = KVCache.allocate(transformer.config, num_pages, PAGE_SIZE, weights.dtype, weights.device)
    fill_cache(kv)
    return kv


def fill_cache(kv: KVCache) -> None:
    """Normal numbers into every page."""
    generator = torch.Generator(device=kv.k.device).manual_seed(0)
    for pages in (kv.k, kv.v):
        for layer in pages:
            layer.normal_(generator=generator)


def _program(schedule: Schedule | None, vocabulary: Vocabulary) -> Program:
    return compile_schedule(schedule or Schedule(cycle=(), guided=False), vocabulary)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
