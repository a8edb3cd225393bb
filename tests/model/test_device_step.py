"""The device's step against plain torch and the host's cursor, interpreted; its rows and their pages."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from random_schedules import VOCABULARY  # noqa: E402
from stepped import Reply, Stepped, by_the_host, small_model  # noqa: E402

from innervoice.checkpoint.quantization import Quantization  # noqa: E402
from innervoice.model.device_step import DeviceStep, RowStart  # noqa: E402
from innervoice.model.pages import PagePool, PageTable  # noqa: E402
from innervoice.model.runner import ModelRunner  # noqa: E402
from innervoice.model.sequence import Sequence  # noqa: E402
from innervoice.model.transformer import Transformer  # noqa: E402
from innervoice.schedule import PRESETS, Schedule, Segment, compile_schedule, make_cursor  # noqa: E402
from innervoice.telemetry.trace import Tracer  # noqa: E402
from innervoice.types import Sampling  # noqa: E402
from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.sampling.cursor_columns import Ending, StateColumn  # noqa: E402

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, seed=0, max_new_tokens=30)
WARM = Sampling(temperature=0.8, top_k=7, top_p=0.9, seed=12345, max_new_tokens=30, ignore_eos=True)
WEIGHTED = Schedule(
    cycle=(Segment("transcript", 2), Segment("speech", 3), Segment("reflection", 3)), reflection_weight=1.4,
)  # fmt: skip
FORCED = Schedule(
    prologue=(Segment("forced", ids=(3, 4)),), cycle=(Segment("transcript", 2), Segment("speech", 2))
)
REPLIES = [
    Reply((5, 9, 2, 7, 1), WEIGHTED, WARM, caps=(2, 1)),
    Reply((3,), FORCED, GREEDY),
    Reply((8, 8, 1), Schedule(cycle=(), guided=False), WARM),
]


WIDE = Reply(  # a fork of more ids than a mask holds singly
    (4, 2),
    Schedule((Segment("choice", choices=[[n, 1] for n in range(0, 20, 2)]),), (Segment("speech", 3),)),
    WARM,
)


def hold(
    replies: list[Reply], steps: int, to: Quantization | None = None, *, experts: bool = False, **options: object
) -> Stepped:  # fmt: skip
    """The tokens of all replies are those of the host."""
    model = small_model(to=to, experts=experts)
    stepped = Stepped(model, replies, **options)
    stepped.run(steps, count=2)
    for reply, tokens in zip(replies, stepped.tokens, strict=True):
        expected = by_the_host(model, reply)
        assert tokens == expected[:steps]
    return stepped


def test_tokens_are_the_host_s() -> None:
    stepped = hold([*REPLIES, WIDE], steps=4)
    assert stepped.stepper.stats().eager_steps == 4 and stepped.stepper.stats().graphs == 0
    assert stepped.stepper.stats().ready_s is None


@pytest.mark.parametrize(
    "to",
    [
        pytest.param(Quantization("int4"), marks=pytest.mark.slow),
        *(pytest.param(Quantization(name), marks=pytest.mark.long) for name in ("int8", "fp8")),
    ],
    ids=str,
)
def test_tokens_of_quantised_weights_are_the_host_s(to: Quantization) -> None:
    hold(REPLIES[:2], steps=4, to=to)


@pytest.mark.parametrize("to", [None, pytest.param(Quantization("int4"), marks=pytest.mark.long)], ids=str)
def test_tokens_of_experts_are_the_host_s(to: Quantization | None) -> None:
    hold(REPLIES[:2], steps=4, to=to, experts=True)


@pytest.mark.long
def test_tokens_of_every_preset_are_the_host_s() -> None:
    budgets = {"fixed_ratio": {"transcript_budget": 3, "speech_budget": 4}}
    presets = [Schedule.preset(name, **budgets.get(name, {})) for name in PRESETS]
    replies = [Reply((7, 1, i), schedule, WARM) for i, schedule in enumerate(presets)]
    stepped = hold(replies, steps=20)
    assert all(stepped.tokens)


def test_a_row_waits_for_a_page_and_goes_on_and_ends_by_its_limit() -> None:
    reply = Reply((5, 1, 2), Schedule.preset("interleaved"), replace(WARM, max_new_tokens=3))
    model = small_model()
    stepped = Stepped(model, [reply])
    stepped.stepper.rows.set_pages({0: stepped.pages[0][:1]})
    stepped.run(3)  # a page holds 4 tokens: two more are fed
    assert len(stepped.tokens[0]) == 2 and stepped.endings == [Ending.WAITING]
    stepped.stepper.rows.set_pages({0: stepped.pages[0]})
    stepped.run(2)
    assert stepped.tokens[0] == by_the_host(model, reply)
    assert len(stepped.tokens[0]) == 3 and stepped.endings == [Ending.LENGTH]


def test_rows_move_pause_and_go_on() -> None:
    """One step in row 1, one in row 0, and one after the reply was begun anew from its cursor's state."""
    model, reply = small_model(), REPLIES[0]
    expected = by_the_host(model, reply)
    stepped = Stepped(model, [REPLIES[1], reply])
    stepped.run(1)
    rows = stepped.stepper.rows
    with pytest.raises(ValueError, match="row 0 is in use"):
        rows.move(1, 0)
    rows.end(0)
    rows.move(1, 0)
    assert rows.cursor.state[1, StateColumn.IS_DONE] == Ending.IDLE and rows.is_weighted
    stepped.tokens[0] = stepped.tokens[1][:]
    stepped.replies = [reply]
    stepped.run(1)
    cursor, num_tokens = rows.state(0)
    host = make_cursor(reply.program, reply.caps, ignore_eos=True, state=cursor)
    assert host.forced == expected[2][0] if expected[2][3] else expected[2][0] in host.mask
    rows.end(0)
    assert not rows.is_weighted and num_tokens == 2
    last, kind, _, _ = stepped.tokens[0][-1]
    start = RowStart(
        last, len(reply.prompt) - 1 + num_tokens, stepped.pages[1], reply.program, reply.sampling, reply.caps, 1,
        reply.log_weight, kind, cursor, num_tokens,
    )  # fmt: skip
    stepped.stepper.begin(0, start)
    stepped.run(1)
    assert stepped.tokens[0] == expected[:3]


@pytest.mark.long
def test_tokens_of_a_row_are_the_same_alone_and_in_any_bucket() -> None:
    """With `invariant`, 17 rows, more than a tile has, give each the tokens that it has alone."""
    model = small_model(torch.bfloat16)
    several = [REPLIES[i % 3] for i in range(17)]
    stepped = Stepped(model, several, max_len=16, invariant=True)
    stepped.run(4)
    for row, reply in enumerate(REPLIES):
        alone = Stepped(model, [reply], max_len=16, invariant=True)
        alone.run(4)
        assert all(stepped.tokens[i] == alone.tokens[0] for i in range(row, 17, 3))


def test_programs_are_kept_once_and_their_room_is_used_again() -> None:
    model = small_model()
    stepped = Stepped(model, [REPLIES[0], REPLIES[0], REPLIES[1]])
    rows = stepped.stepper.rows
    starts = rows.cursor.request[:, 0].tolist()
    assert starts[0] == starts[1] != starts[2]
    for row in range(3):
        rows.end(row)
    stepped.stepper.begin(0, RowStart(1, 0, [0], REPLIES[1].program, GREEDY))
    assert rows.cursor.request[0, 0] == 0


def test_what_cannot_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    stepped = Stepped(model, [REPLIES[1]])
    stepper, program = stepped.stepper, compile_schedule(Schedule.preset("interleaved"), VOCABULARY)
    with pytest.raises(ValueError, match="unset fields"):
        stepper.begin(0, RowStart(1, 0, [0], program, Sampling()))
    with pytest.raises(ValueError, match="17 pages, the table holds 16"):
        stepper.begin(0, RowStart(1, 0, range(17), program, GREEDY))
    with pytest.raises(ValueError, match="position 64, of 64"):
        stepper.begin(0, RowStart(1, 64, [0], program, GREEDY))
    stepper.rows.lower_cap(0, 3)
    assert stepper.rows.cursor.lower[0] == 3
    with pytest.raises(ValueError, match="1 steps of 2 rows"):
        stepper.step(2)
    with use("ref"), pytest.raises(ValueError, match="needs Triton on cpu"):
        DeviceStep(model, stepped.kv, max_rows=1, max_model_len=8)
    monkeypatch.setenv("INNERVOICE_PDL", "yes")
    with use("triton"), pytest.raises(ValueError, match="INNERVOICE_PDL=yes: use 0 or 1"):
        DeviceStep(model, stepped.kv, max_rows=1, max_model_len=8)


def test_warmup_leaves_nothing_behind() -> None:
    with use("triton"):
        stepped = Stepped(small_model(), [REPLIES[1]])
        stepped.stepper.rows.end(0)
        assert stepped.stepper.warmup(weighted=(False,)) > 0
    stats = stepped.stepper.stats()
    assert stats.ready_s is not None and (stats.jit_after_warmup, stats.eager_steps, stats.graphs) == (
        0,
        0,
        0,
    )
    assert (stepped.kv.k == 0).all()


@pytest.mark.parametrize("to", [None, pytest.param(Quantization("int4"), marks=pytest.mark.slow)])
def test_an_invariant_prompt_is_the_same_in_any_pieces(to: Quantization | None) -> None:
    """A prompt fed whole, and in pieces of one token and more beside another prompt: bit for bit, in bfloat16."""
    small = small_model(torch.bfloat16, to=to)
    model = Transformer(small.config, small.weights, invariant=True)
    prompt, hidden = [5, 9, 2, 7, 1, 8, 30, 4, 4, 11, 3, 2], []
    for pieces in ((12,), (1, 4, 1, 6)):
        runner = ModelRunner(model, 16, 4, Tracer(), backend="plain", max_model_len=32)
        pool = PagePool(16, 4)
        row, other = Sequence(PageTable(pool)), Sequence(PageTable(pool))
        row.extend(prompt)
        row.table.grow(len(prompt))
        for end in accumulate(pieces):
            row.limit = end
            other.extend([7])
            other.table.grow(1)
            with use("triton"):
                logits = runner.forward([other, row] if len(pieces) > 1 else [row])
        hidden.append((logits[-1], runner.kv.k[:, row.table.pages].clone()))
    (alone, keys), (beside, other_keys) = hidden
    assert torch.equal(alone, beside) and torch.equal(keys, other_keys)
