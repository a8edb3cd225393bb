"""The cursor of the kernels against golden traces and against the host's cursor on random schedules, interpreted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreted import need_interpreter
from safetensors.torch import load_file
from torch import Tensor

need_interpreter()

from random_schedules import FED, SIZE, TAGGED, VOCABULARY, fed_schedules, schedules, tagged_schedules  # noqa: E402
from triton_rows import allowed_ids, rows_of  # noqa: E402

from innervoice.schedule import (  # noqa: E402
    Cursor,
    Emission,
    FreeCursor,
    Program,
    Schedule,
    TokenKind,
    compile_schedule,
    make_cursor,
    pack,
    replay,
)
from innervoice.types import Sampling, Vocabulary  # noqa: E402
from innervoice_kernels.sampling.cursor import (  # noqa: E402
    SLOTS,
    Programs,
    Rows,
    advance,
    prepare,
    request_columns,
    state_columns,
    state_values,
)
from innervoice_kernels.sampling.cursor_columns import (  # noqa: E402
    UNLIMITED,
    Ending,
    OutputColumn,
    StateColumn,
)
from innervoice_kernels.sampling.replay import replay_rows, step  # noqa: E402
from innervoice_kernels.sampling.sample import Draw, sample_ref  # noqa: E402
from innervoice_kernels.sampling.sample_pick import Offers  # noqa: E402

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0)
GROWN = replace(VOCABULARY, text=(0, 12), words=((14, 17),), speech=(20, 28), eos=(29, 30, 28))


def golden(data_dir: Path, indices: Sequence[int]) -> tuple[list[dict[str, Any]], Rows, Programs, Tensor]:
    traces = json.loads((data_dir / "golden" / "schedule_traces.json").read_text())
    logits = load_file(data_dir / "golden" / "schedule_traces.safetensors")["logits"].float()
    replies = []
    for trace in (traces[i] for i in indices):
        vocab, schedule = trace["vocab"], {k: v for k, v in trace["schedule"].items() if k != "caps"}
        names = {name: vocab.get(name) for name in ("open", "close", "done")}
        speech = vocab.get("speech")
        vocabulary = Vocabulary(
            34, tuple(vocab["text"]), tuple(speech) if speech else None, vocab.get("eot"), **names
        )
        program = compile_schedule(
            Schedule.from_dict(schedule | {"tokens": names | schedule.get("tokens", {})}), vocabulary
        )
        sampling = Sampling(
            temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=trace["max_new_tokens"]
        )
        replies.append((program, sampling, trace["schedule"].get("caps") or ()))
    rows, programs = rows_of(replies)
    return [traces[i] for i in indices], rows, programs, logits[list(indices)]


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_golden_traces(data_dir: Path, every: int) -> None:
    """Through the cursor, by draws that torch makes from its masks."""
    traces, rows, programs, logits = golden(data_dir, range(0, 240, every))
    got: list[list[tuple[int, str]]] = [[] for _ in traces]
    for t in range(logits.shape[1]):
        prepare(rows, programs)
        allowed = allowed_ids(rows, 34)
        best = logits[:, t].repeat_interleave(SLOTS, 0).masked_fill(~allowed, -1e9).argmax(1)
        drawn = best.masked_fill(~allowed.any(1), -1).int().reshape(-1, SLOTS)
        advance(rows, programs, drawn, torch.zeros(len(traces), SLOTS))
        for reply, line in zip(got, rows.output.tolist(), strict=True):
            if line[OutputColumn.KIND] >= 0:
                reply.append((line[OutputColumn.TOKEN], TokenKind(line[OutputColumn.KIND]).label))
    assert got == [list(zip(trace["ids"], trace["kinds"], strict=True)) for trace in traces]


def hold_replay(data_dir: Path, indices: Sequence[int]) -> None:
    traces, rows, programs, logits = golden(data_dir, indices)
    assert replay_rows(rows, programs, logits) == [(trace["ids"], trace["kinds"]) for trace in traces]


@pytest.mark.slow
def test_golden_traces_through_the_sampling_kernel(data_dir: Path) -> None:
    hold_replay(data_dir, range(0, 240, 16))


@pytest.mark.slow
def test_all_golden_traces_through_the_sampling_kernel(data_dir: Path) -> None:
    hold_replay(data_dir, range(240))


@pytest.mark.parametrize("index", [40, 200])
def test_replay_by_the_kernel(data_dir: Path, index: int) -> None:
    trace = json.loads((data_dir / "golden" / "schedule_traces.json").read_text())[index]
    logits = load_file(data_dir / "golden" / "schedule_traces.safetensors")["logits"][index].numpy()
    got = replay(trace["schedule"], trace["vocab"], logits, trace["max_new_tokens"], kernel="triton")
    assert got == (trace["ids"], trace["kinds"])
    assert replay(trace["schedule"], trace["vocab"], logits, trace["max_new_tokens"], kernel="host") == got


def test_cursors_go_from_the_host_to_the_device_and_back() -> None:
    """Guided and free, after every token of a reply."""
    generator = torch.Generator().manual_seed(6)
    guided = {"cycle": [["reflection", 3], ["transcript", 2], ["speech", 2]], "tokens": {"done": None}}
    calling = {"cycle": [["transcript", 2], ["speech", 2]], "tool": 2}
    for data in (guided, calling, {"cycle": [], "guided": False}):
        program = compile_schedule(Schedule.from_dict(data), VOCABULARY)
        host = Host(program, GREEDY, (2, UNLIMITED, 1))
        for num_tokens in range(1, 12):
            host.step(torch.randn(SIZE, generator=generator))
            if host.cursor.is_done:
                break
            kept = host.cursor.state
            state = state_columns(num_tokens, kept.caps, **pack.state_values(kept))
            assert state[StateColumn.NUM_TOKENS] == num_tokens
            values, caps = state_values(state, [2, UNLIMITED, 1, UNLIMITED])
            back = pack.cursor_state(values, caps, is_guided=program.schedule.guided)
            assert replace(back, granted=kept.granted) == kept  # the host alone knows what was granted
        assert num_tokens > 2


@dataclass
class Host:
    """A reply as the engine's loop runs it: one token a step."""

    program: Program
    sampling: Sampling
    caps: Sequence[int]
    cursor: Cursor | FreeCursor = field(init=False)
    num_tokens: int = 0
    is_over: bool = False
    discarded: bool = False
    left: list[int] = field(default_factory=lambda: [3, 1, 4, 1, 5])  # of its feeds, which close behind it

    def __post_init__(self) -> None:
        self.cursor = make_cursor(self.program, self.caps, ignore_eos=self.sampling.ignore_eos)

    def take_fed(self) -> None:
        """Take ids until it waits for none."""
        while isinstance(self.cursor, Cursor) and self.cursor.waits and not self.is_over:
            if not self.left:
                self.cursor.close_feed()
                continue
            self.cursor.feed(self.left.pop(0))
            self.num_tokens += 1
            self.is_over = self.num_tokens >= self.sampling.max_new_tokens

    def step(self, logits: Tensor) -> tuple[Emission | None, float | None]:
        emission, logprob = self._emit(logits, 0)
        self.discarded = emission is None
        if emission is None and self.cursor.waits:
            return None, None
        if emission is None:
            emission, logprob = self._emit(logits, 1)
        assert emission is not None
        self.num_tokens += 1
        self.is_over = self.cursor.is_done or self.num_tokens >= self.sampling.max_new_tokens
        return emission, logprob

    def _emit(self, logits: Tensor, d: int) -> tuple[Emission | None, float | None]:
        if self.cursor.forced is not None:
            return self.cursor.emit_forced(), None
        s, own, mask = self.sampling, self.cursor.sampling, self.cursor.mask
        t, k, p = (
            getattr(s if own is None or getattr(own, n) is None else own, n)
            for n in ("temperature", "top_k", "top_p")
        )
        ids, logprobs = sample_ref(
            logits[None], [Draw(mask.ranges, mask.extras, t, k, p, s.seed or 0, self.num_tokens, d)]
        )
        return self.cursor.draw(int(ids)), float(logprobs)


def hold_replies(replies: Sequence[tuple[Program, Sampling, Sequence[int]]], seed: int, steps: int) -> None:
    """The device's tokens, kinds, segments, log-probabilities and states are the host's; caps are lowered at random."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    hosts = [Host(*reply) for reply in replies]
    rows, programs = rows_of(replies)
    offers = Offers.allocate(len(hosts), SIZE, SLOTS, torch.device("cpu"))
    for row, host in enumerate(hosts):
        go_on(rows, row, host)
    for _ in range(steps):
        logits = 1.5 * torch.randn(len(hosts), SIZE, generator=generator)
        logits[:, 30:] += 4 * torch.rand(
            len(hosts), SIZE - 30, generator=generator
        )  # the special ids come often enough
        for row, host in enumerate(hosts):
            if isinstance(host.cursor, Cursor) and not host.is_over and rng.random() < 0.15:
                grant(rows, row, host, cap=rng.randrange(5), both=rng.random() < 0.7)
        step(rows, programs, logits, offers)
        for row, host in enumerate(hosts):
            compare(rows, row, host, logits[row])
            go_on(rows, row, host)


def go_on(rows: Rows, row: int, host: Host) -> None:
    """Where its cursor waits for ids, the host takes them, and the row goes on from there."""
    fed = rows.state[row, StateColumn.IS_DONE] == Ending.FED
    if host.is_over or not (fed or host.cursor.waits):
        return
    host.take_fed()
    if host.is_over:
        rows.state[row, StateColumn.IS_DONE] = Ending.IDLE
        return
    kept = host.cursor.state
    state = state_columns(host.num_tokens, kept.caps, **pack.state_values(kept))
    rows.state[row] = torch.tensor(state, dtype=torch.int32)


def grant(rows: Rows, row: int, host: Host, cap: int, both: bool) -> None:
    """A cap for the open reflection; with both, for the next one where none is open, which its own cap limits further."""
    cursor, rows.lower[row] = host.cursor, cap
    if cursor.is_reflecting:
        cursor.lower_cap(cap)
    elif both:
        number = cursor.num_reflections
        cursor.cap_next(min(cap, host.caps[number] if number < len(host.caps) else UNLIMITED))
    if both:
        rows.coming[row] = cap


def compare(rows: Rows, row: int, host: Host, logits: Tensor) -> None:
    token, kind, segment, is_forced, ending, discarded = rows.output[row].tolist()
    if host.is_over:
        assert (token, kind) == (-1, -1)
        return
    emission, logprob = host.step(logits)
    assert discarded == host.discarded
    if emission is None:
        assert (token, kind, ending) == (-1, -1, Ending.FED)
        return
    assert (token, kind, segment, bool(is_forced)) == (
        emission.token,
        emission.kind,
        emission.segment,
        emission.forced,
    )
    expected = float("nan") if logprob is None else logprob
    torch.testing.assert_close(float(rows.logprob[row]), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    is_closed = isinstance(host.cursor, Cursor) and bool(host.cursor.closed)
    assert not host.cursor.waits or ending == Ending.FED or host.is_over
    if ending == Ending.FED and not host.is_over:  # the device knows of no feed that it is closed
        assert host.cursor.waits or is_closed
        return
    assert ending == (
        Ending.STOP if host.cursor.is_done else Ending.LENGTH if host.is_over else Ending.RUNNING
    )
    if isinstance(host.cursor, Cursor) and not host.is_over:
        kept, state = host.cursor.state, rows.state[row].tolist()
        packed = state_columns(host.num_tokens, kept.caps, **pack.state_values(kept))
        assert state[: StateColumn.IN_REFLECTION] == packed[: StateColumn.IN_REFLECTION]


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(st.sampled_from([0.0, 0.0, 0.7, 1.3])),
        top_k=draw(st.sampled_from([0, 3, 12])),
        top_p=draw(st.sampled_from([1.0, 0.9, 0.5])),
        seed=draw(st.integers(0, 2**64 - 1)),
        max_new_tokens=draw(st.sampled_from([3, 200])),
        ignore_eos=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def replies(draw: st.DrawFn) -> tuple[Program, Sampling, list[int]]:
    data = draw(schedules() | tagged_schedules() | fed_schedules())
    sampling, own = (
        draw(samplings()),
        draw(st.none() | st.sampled_from([Sampling(temperature=0.0), Sampling(top_p=0.6, top_k=5)])),
    )
    absent = draw(st.sets(st.sampled_from(["open", "close", "done"]), max_size=1))
    schedule = Schedule.from_dict(data | {"tokens": dict.fromkeys(absent)})
    if not schedule.makes_calls:
        schedule = schedule.with_changes(guided=draw(st.sampled_from([True, True, True, False])))
    if own is not None:
        cycle = tuple(s if s.kind == "forced" else replace(s, sampling=own) for s in schedule.cycle)
        schedule = schedule.with_changes(cycle=cycle)
    vocabulary = draw(st.sampled_from([VOCABULARY, VOCABULARY, GROWN]))
    return compile_schedule(schedule, vocabulary), sampling, draw(st.lists(st.integers(0, 5), max_size=4))


RANDOM = given(several=st.lists(replies(), min_size=8, max_size=12), seed=st.integers(0, 2**32 - 1))
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.mark.slow
@settings(max_examples=2, deadline=None, suppress_health_check=CHECKS, derandomize=True)
@RANDOM
def test_random_schedules_equal_the_host(
    several: list[tuple[Program, Sampling, list[int]]], seed: int
) -> None:
    hold_replies(several, seed, steps=24)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=CHECKS)
@RANDOM
def test_random_schedules_equal_the_host_at_length(
    several: list[tuple[Program, Sampling, list[int]]], seed: int
) -> None:
    hold_replies(several, seed, steps=60)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_every_end_and_added_words_equal_the_host(ignore_eos: bool) -> None:
    """Several ids end a reply, words beside the text are drawn: the same ids and masks on both sides."""
    cycles: list[list[Any]] = [
        [["transcript", 3], ["speech", 4]],
        [["transcript", None]],
        [["reflection", 2], ["transcript", 2]],
        [["speech", None]],
    ]
    for seed, temperature in enumerate((0.0, 1.5)):
        sampling = Sampling(
            temperature=temperature, top_k=0, top_p=1.0, seed=seed, max_new_tokens=40, ignore_eos=ignore_eos
        )
        programs = [compile_schedule(Schedule.from_dict({"cycle": cycle}), GROWN) for cycle in cycles]
        hold_replies([(program, sampling, []) for program in programs], seed, steps=10)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_calls_equal_the_host(ignore_eos: bool) -> None:
    """Chosen and forced calls, one and several, with a budget and without, through the text, the speech and a reflection."""
    schedules: list[dict[str, Any]] = [
        {"cycle": [["transcript", 3], ["speech", 2]], "tool": "on"},
        {"cycle": [["transcript", None]], "tool": 2},
        {"cycle": [["reflection", 2], ["transcript", 2]], "tool": "on", "parallel_calls": False},
        {"cycle": [["speech", 3]], "tool": 3},
        {"prologue": [{"kind": "tool", "budget": 2, "ids": [3, 4]}], "cycle": [["transcript", 2]]},
        {"prologue": [["tool", None]], "cycle": [["transcript", 2], ["speech", 2]], "tool": 1},
    ]
    for seed, temperature in enumerate((0.0, 1.5, 3.0)):
        sampling = Sampling(
            temperature=temperature, top_k=0, top_p=1.0, seed=seed, max_new_tokens=40, ignore_eos=ignore_eos
        )
        programs = [compile_schedule(Schedule.from_dict(one), VOCABULARY) for one in schedules]
        hold_replies([(program, sampling, []) for program in programs], seed, steps=12)


def test_tags_stops_and_choices_equal_the_host() -> None:
    for seed, temperature in enumerate((0.0, 3.0)):
        sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=seed, max_new_tokens=40)
        programs = [compile_schedule(Schedule.from_dict(one), VOCABULARY) for one in TAGGED]
        hold_replies([(program, sampling, []) for program in programs], seed, steps=14)


def test_fed_segments_equal_the_host() -> None:
    """A row stops where ids come from outside, and goes on where the host says; also behind a discarded draw."""
    for seed, temperature in enumerate((0.0, 2.0)):
        sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0, seed=seed, max_new_tokens=30)
        programs = [compile_schedule(Schedule.from_dict(one), VOCABULARY) for one in FED]
        hold_replies([(program, sampling, []) for program in programs], seed, steps=14)


def test_forks_and_stops_of_any_number_of_ids_equal_the_host() -> None:
    """A fork of ten ids and one of all, alone and behind another; stops that end a segment of text; words that were
    added in several places. What is not offered is by far the likeliest.
    """
    every = [[n, 1] for n in range(28)]
    vocabulary = replace(GROWN, words=((13, 14), (16, 18), (31, 34)))
    schedules = [
        {"prologue": [{"kind": "choice", "choices": every[0:20:2]}], "cycle": [["speech", 2]]},
        {"prologue": [{"kind": "choice", "choices": every}], "cycle": [["transcript", 3], ["speech", 2]]},
        {
            "prologue": [
                {"kind": "choice", "as": "reflection", "choices": [[5, *ids] for ids in every[:25]] + [[6]]}
            ],
            "cycle": [
                ["transcript", 3],
                ["speech", 2],
                {"kind": "reflection", "budget": 4, "open": [], "close": []},
            ],
        },
        {
            "cycle": [
                {"kind": "reflection", "budget": 5, "stop": list(range(12, 28))},
                ["transcript", 2],
                ["speech", 3],
            ]
        },
        {"cycle": [["transcript", 4], ["speech", 3], ["reflection", 5]], "prologue": [["reflection", 4]]},
    ]
    for seed, (temperature, top_k, top_p) in enumerate(
        ((0.0, 0, 1.0), (1.5, 0, 1.0), (1.5, 12, 1.0), (1.5, 0, 0.8))
    ):
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_new_tokens=30)
        programs = [compile_schedule(Schedule.from_dict(one), vocabulary) for one in schedules]
        assert all(len(program.sets) for program in programs)
        hold_replies([(program, sampling, []) for program in programs], seed, steps=8)


def test_a_device_refuses_more_ends_than_it_holds() -> None:
    schedule = Schedule.from_dict({"cycle": [["transcript", None]]})
    many = compile_schedule(schedule, replace(VOCABULARY, eos=(1, 2, 3, 4)))
    with pytest.raises(ValueError, match="5 eos ids, the cursor holds 4"):
        request_columns(**pack.request_values(many, GREEDY))


def test_a_cap_leaves_forced_text_whole() -> None:
    """Forced ids that count as reflection are no segment that a cap could close, and the cap is the next reflection's."""
    forced = {"kind": "forced", "as": "reflection", "ids": [1, 2, 3]}
    program = compile_schedule(
        Schedule.from_dict({"cycle": [forced, ["reflection", 4], ["speech", 2]]}), VOCABULARY
    )
    host = Host(program, GREEDY, ())
    rows, programs = rows_of([(program, GREEDY, ())])
    offers = Offers.allocate(1, SIZE, SLOTS, torch.device("cpu"))
    logits = torch.arange(SIZE, 0, -1).float()[None]
    for _ in range(7):
        grant(rows, 0, host, cap=1, both=True)
        step(rows, programs, logits, offers)
        compare(rows, 0, host, logits[0])
    assert host.cursor.granted == [1] and host.cursor.kind is TokenKind.SPEECH


def test_a_draw_of_no_number_ends_its_row_alone() -> None:
    program = compile_schedule(Schedule.from_dict({"cycle": [["transcript", 2], ["speech", 3]]}), VOCABULARY)
    rows, programs = rows_of([(program, GREEDY, ())] * 2)
    logits = torch.zeros(2, SIZE)
    logits[0, 4] = float("nan")
    step(rows, programs, logits, Offers.allocate(2, SIZE, SLOTS, torch.device("cpu")))
    assert rows.output[:, OutputColumn.IS_DONE].tolist() == [Ending.REFUSED, Ending.RUNNING]
    assert rows.output[:, OutputColumn.TOKEN].tolist() == [-1, 0]


def test_idle_rows_emit_nothing() -> None:
    rows = Rows.allocate(3, 1, "cpu")
    step(
        rows,
        Programs.join([], "cpu"),
        torch.zeros(3, SIZE),
        Offers.allocate(3, SIZE, SLOTS, torch.device("cpu")),
    )
    assert rows.output[:, : OutputColumn.KIND + 1].tolist() == [[-1, -1]] * 3
    assert rows.state[:, StateColumn.NUM_TOKENS].tolist() == [0, 0, 0]
