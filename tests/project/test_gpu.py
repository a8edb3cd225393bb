"""What only a GPU can show: kernels at real shapes, graphs against eager steps, golden traces, no compilation after warm-up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from innervoice.schedule import PRESETS, Schedule, Segment, replay
from innervoice.types import Sampling
from innervoice_kernels.backend import use
from innervoice_kernels.jit import PDL_SINCE
from innervoice_kernels.language.attention import paged_attention
from innervoice_kernels.language.linear import Norm, gated_linear, linear
from innervoice_kernels.sampling.head import head_sample
from innervoice_kernels.sampling.sample import Draw
from innervoice_kernels.testing import OPS, Case, Op, check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU is here"),
]

WARM = Sampling(temperature=0.8, top_k=7, top_p=0.9, seed=12345, max_new_tokens=500, ignore_eos=True)
WEIGHTED = Schedule(
    cycle=(Segment("transcript", 2), Segment("speech", 3), Segment("reflection", 3)), reflection_weight=1.4
)
CASES = [
    pytest.param(op, case, dtype, id=f"{op.name}-{size} {case.name}-{dtype}")
    for op in OPS.values()
    for size, cases in (("small", op.cases), ("real", op.real))
    for case in cases
    for dtype in op.dtypes
]


@pytest.mark.parametrize(("op", "case", "dtype"), CASES)
def test_every_op_obeys_the_error_rule(op: Op, case: Case, dtype: torch.dtype) -> None:
    check(op, case, dtype, "cuda")


def test_all_golden_traces_by_the_kernel(data_dir: Path) -> None:
    traces = json.loads((data_dir / "golden" / "schedule_traces.json").read_text())
    logits = load_file(data_dir / "golden" / "schedule_traces.safetensors")["logits"].numpy()
    for trace, scripted in zip(traces, logits, strict=True):
        got = replay(trace["schedule"], trace["vocab"], scripted, trace["max_new_tokens"], kernel="triton")
        assert got == (trace["ids"], trace["kinds"])


def stepped(dtype: torch.dtype, replies: Any, **options: Any) -> Any:
    from stepped import Stepped, small_model

    return Stepped(small_model(dtype, "cuda"), replies, max_len=520, **options)


def replies_of(*schedules: Schedule) -> list[Any]:
    from stepped import Reply

    return [Reply((7, 1, i % 30), schedule, WARM) for i, schedule in enumerate(schedules)]


@pytest.mark.parametrize("name", [*PRESETS, "weighted"])
def test_graphs_give_the_tokens_of_eager_steps(name: str) -> None:
    """500 steps of three rows, four steps a call, read one call late."""
    budgets = {"transcript_budget": 3, "speech_budget": 4} if name == "fixed_ratio" else {}
    schedule = WEIGHTED if name == "weighted" else Schedule.preset(name, **budgets)
    made = [stepped(torch.bfloat16, replies_of(*[schedule] * 3), graphs=graphs) for graphs in (False, True)]
    for one in made:
        one.run(500, count=4)
    eager, graphed = made
    assert eager.tokens == graphed.tokens and min(map(len, eager.tokens)) == 500
    assert graphed.stepper.stats().replays == 499 and eager.stepper.stats().replays == 0


def test_dependent_launches_change_no_token() -> None:
    """Replayed from graphs and launched one by one, with and without a weight, in buckets on either side of cuBLAS."""
    if torch.cuda.get_device_capability() < PDL_SINCE:
        pytest.skip("the GPU is older than dependent launches")
    replies = replies_of(*[Schedule.preset("stitch_s"), WEIGHTED, Schedule.preset("reempathy")] * 7)
    made = [
        stepped(torch.bfloat16, replies, pdl=pdl, graphs=graphs)
        for pdl, graphs in ((False, True), (True, True), (True, False))
    ]
    for one in made:
        one.run(200, count=4)
    assert [one.stepper.pdl for one in made] == [False, True, True]
    assert made[0].tokens == made[1].tokens == made[2].tokens and max(map(len, made[0].tokens)) == 200


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_graphs_of_the_flow_give_the_mel_of_single_launches(dtype: torch.dtype) -> None:
    from small_codec import MEL, small_flow

    flow, generator = small_flow(dtype, "cuda"), torch.Generator("cuda").manual_seed(1)
    graphs = flow.graphs
    assert graphs is not None
    for turn in range(4):
        for rows, frames in ((1, 64), (3, 64), (2, 130)):
            x, mu, cond = (
                torch.randn(rows, MEL, frames, device="cuda", generator=generator) for _ in range(3)
            )
            n = torch.tensor([frames - 5 * i for i in range(rows)], device="cuda")
            with torch.inference_mode():
                flow.graphs = graphs
                replayed = flow.solve(x, mu, mu[..., 0], cond, 3 + turn, n)
                flow.graphs = None
                assert torch.equal(replayed, flow.solve(x, mu, mu[..., 0], cond, 3 + turn, n))
    assert (graphs.num_captured, graphs.num_replays, graphs.error) == (3, 3 * (4 + 5 + 6), None)


def engine_of(tiny_dir: Path, backend: str) -> Any:
    """Float32: "auto" draws on the device by graphs, "plain" on the host from PyTorch's own forward pass."""
    import innervoice as iv
    from innervoice.runtime.overlap import Overlap

    options: dict[str, Any] = {"dtype": "float32", "vocoder_noise": False, "max_sessions": 16}
    engine = iv.Engine.from_pretrained(tiny_dir, device="cuda", backend=backend, **options)
    assert isinstance(engine.parts.core.decoder, Overlap) == (backend == "auto")
    return engine


def test_the_engine_draws_on_the_device_what_the_host_draws(tiny_dir: Path) -> None:
    """Every preset, four replies at once, greedy and warm, with caps of reflections, more of them than the device holds."""
    import innervoice as iv

    said: list[list[Any]] = []
    for backend in ("auto", "plain"):
        with engine_of(tiny_dir, backend) as engine:
            replies: list[Any] = []
            for name in PRESETS:
                budgets = {"transcript_budget": 3, "speech_budget": 4} if name == "fixed_ratio" else {}
                for temperature, caps in ((0.0, ()), (0.8, (2, 1) if name != "stitch_s" else [3] * 100)):
                    prompts = [iv.Ids([5 + i, 9, 2 * i + 1]) for i in range(4)]
                    sampling = iv.Sampling(
                        temperature=temperature, top_k=20, top_p=0.9, seed=1, max_new_tokens=80
                    )
                    schedule = Schedule.preset(name, **budgets)
                    replies += engine.generate(
                        prompts, schedule=schedule, sampling=sampling, reflection_caps=caps
                    )
            said.append([(r.ids, r.finish_reason, r.usage.reflection_caps) for r in replies])
    for mine, other in zip(*said, strict=True):
        assert mine == other and mine[0]


def test_what_the_device_draws_is_forked_and_made_again(tiny_dir: Path) -> None:
    """A listener's reply, whose reflection is granted as it is drawn: forked on its way, and made again from its caps."""
    import innervoice as iv

    sampling = iv.Sampling(temperature=0.8, top_k=20, seed=3, max_new_tokens=120)
    with engine_of(tiny_dir, "auto") as engine, engine.open_session(schedule="reempathy") as session:
        stream = session.reply(iv.Text("hello"), sampling=sampling)
        seen = 0
        for event in stream:
            seen += len(getattr(event, "ids", ()))
            if seen >= 20:
                break
        with session.fork() as twin:
            whole = stream.reply()
            paused = engine._worker.call_sessions(lambda sessions: sessions.history(twin.session_id)).paused
            if paused is not None:
                assert twin.reply().reply().ids == whole.ids[paused.num_tokens :]
        caps = whole.usage.reflection_caps
        for backend in ("auto", "plain"):
            with engine_of(tiny_dir, backend) as other, other.open_session(schedule="reempathy") as again:
                made = again.reply(
                    iv.Text("hello"), sampling=sampling, reflection_caps=caps, realtime=False
                ).reply()
                assert (made.ids, made.usage.reflection_caps) == (whole.ids, caps)


def test_an_engine_compiles_nothing_after_warmup(tiny_dir: Path) -> None:
    """Prompts of many lengths, replies that begin and end in every bucket, somebody who listens, turns with a history."""
    import innervoice as iv

    with engine_of(tiny_dir, "auto") as engine:
        sampling = iv.Sampling(temperature=0.8, seed=3, max_new_tokens=60)
        for num in (1, 3, 8, 16):
            prompts = [iv.Ids([1 + n % 60 for n in range(5 + 7 * i)]) for i in range(num)]
            engine.generate(prompts, schedule="stitch_s", sampling=sampling)
        engine.stream(iv.Text("hello"), schedule="reempathy", sampling=sampling).reply()
        with engine.open_session(schedule="interleaved") as session:
            for text in ("hello", "and then?"):
                session.reply(iv.Text(text), sampling=sampling).reply()
        stats = engine.stats()
        assert stats.ready_s is not None and stats.jit_after_warmup == 0
        steps = engine.parts.core.decoder.device_step.stats()
        assert steps.eager_steps == 0 and steps.replays > 100


def test_tokens_are_the_host_s() -> None:
    from stepped import by_the_host, small_model

    replies = replies_of(*(Schedule.preset(name) for name in ("stitch_s", "reempathy")), WEIGHTED)
    device = stepped(torch.float32, replies)
    device.run(40)
    for reply, tokens in zip(replies, device.tokens, strict=True):
        assert tokens == by_the_host(small_model(), reply)[:40]


def test_nothing_is_compiled_after_warmup() -> None:
    """Rows begin and end in every bucket, with and without a weight, one step and several a call."""
    from innervoice.model.device_step import RowStart

    replies = replies_of(*[Schedule.preset("stitch_s"), WEIGHTED, Schedule.preset("interleaved")] * 11)
    one = stepped(torch.bfloat16, replies)
    stepper = one.stepper
    for row in range(len(replies)):
        stepper.rows.end(row)
    assert stepper.warmup() > 0
    for row, reply in enumerate(replies):
        stepper.begin(
            row,
            RowStart(5, 0, one.pages[row], reply.program, reply.sampling, reply.caps, 1, reply.log_weight),
        )
        stepper.read(stepper.step(row + 1, 1 + row % 3))
    for row in reversed(range(1, len(replies))):
        stepper.rows.end(row)
        stepper.read(stepper.step(row))
    stats = stepper.stats()
    assert (stats.jit_after_warmup, stats.eager_steps) == (0, 0) and stats.replays > 60
    assert stats.graphs == 2 * len(stepper.buckets)


def test_a_step_of_contexts_is_captured_by_the_warmup() -> None:
    """Two and three contexts of one reply, and a reply beside them, in several buckets."""
    from innervoice.model.device_step import RowStart
    from innervoice_kernels.sampling.fuse import Fusing

    replies = replies_of(*[Schedule.preset("stitch_s"), WEIGHTED] * 9)
    one = stepped(torch.bfloat16, replies, fused=True)
    stepper = one.stepper
    for row in range(len(replies)):
        stepper.rows.end(row)
    stepper.warmup()
    assert stepper.stats().graphs == 2 * (2 * len(stepper.buckets) - 1)
    begun = 0
    for how in (Fusing("guidance", 1.5), Fusing("pragmatic", log_prior=(-1.1,) * 3), Fusing("contrast", 0.1)):
        rows = list(range(begun, begun + how.size))
        begun += how.size
        for row in rows:
            reply = replies[rows[0]]
            stepper.begin(row, RowStart(5 + row, 0, one.pages[row], reply.program, reply.sampling))
        stepper.rows.fuse(rows, how)
        (drawn,) = stepper.read(stepper.step(begun))
        assert len({emitted.token for emitted in drawn if emitted.row in rows}) == 1
    stats = stepper.stats()
    assert (stats.jit_after_warmup, stats.eager_steps, stats.replays) == (0, 0, 3)


@contextmanager
def without_waits() -> Iterator[None]:
    """Within, what would have the host wait for the device raises RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rows_begin_and_step_without_a_wait() -> None:
    """Beginning, order and step; a result is read behind its own event."""
    from innervoice.model.device_step import RowStart

    replies = replies_of(*[Schedule.preset("stitch_s"), WEIGHTED] * 2)
    one = stepped(torch.bfloat16, replies)
    stepper = one.stepper
    for row in range(len(replies)):
        stepper.rows.end(row)
    stepper.warmup()
    for row, reply in enumerate(replies):
        start = RowStart(5, 0, one.pages[row], reply.program, reply.sampling, reply.caps, 1, reply.log_weight)
        with without_waits():
            stepper.begin(row, start)
            stepper.rows.order({row: 4})
            queued = stepper.step(row + 1, 2)
        assert stepper.read(queued)


@pytest.mark.parametrize("rows", [1, 7, 16, 33, 128])
def test_sums_of_a_row_are_the_same_in_every_batch(rows: int) -> None:
    """The own kernels at GLM-4-Voice's shapes: bit for bit those of the row alone."""
    generator = torch.Generator("cuda").manual_seed(rows)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda", generator=generator).bfloat16()

    x, wide, w = normal(rows, 4096), normal(rows, 13696), normal(4608, 4096) / 64
    norm, gate, down = Norm(normal(4096), 1e-6), normal(27392, 4096) / 64, normal(4096, 13696) / 117
    last = slice(rows - 1, rows)
    assert torch.equal(
        linear(x, w, norm=norm, invariant=True)[last], linear(x[last], w, norm=norm, invariant=True)
    )
    assert torch.equal(
        gated_linear(x, gate, norm, invariant=True)[last], gated_linear(x[last], gate, norm, invariant=True)
    )
    down_all = linear(wide, down, residual=x, invariant=True)
    assert torch.equal(down_all[last], linear(wide[last], down, residual=x[last], invariant=True))
    pages, lengths = (
        normal(rows * 8, 16, 2, 128),
        torch.arange(1, rows + 1, dtype=torch.int32, device="cuda") % 127 + 1,
    )
    table = torch.arange(rows * 8, dtype=torch.int32, device="cuda").reshape(rows, 8)
    starts, q = torch.arange(rows + 1, dtype=torch.int32, device="cuda"), normal(rows, 32, 128)
    whole = paged_attention(q, pages, pages, table, starts, lengths, 0.088, max_queries=1)
    alone = paged_attention(
        q[last], pages, pages, table[last], starts[:2], lengths[last], 0.088, max_queries=1
    )
    assert torch.equal(whole[last], alone)


def test_the_head_draws_within_a_segment_at_the_real_shape() -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    x, w = (torch.randn(n, 4096, device="cuda", generator=generator).bfloat16() for n in (8, 168960))
    draws = [Draw(((152353, 168737),), (151336,), 0.8, 50, 0.9, seed=i, n=i) for i in range(8)]
    ids, logprobs = head_sample(x, w / 64, draws)
    with use("ref"):
        expected, _ = head_sample(x, w / 64, draws)
    assert (ids == expected).sum() >= 7 and torch.isfinite(
        logprobs
    ).all()  # bfloat16 products differ in the last bit


@pytest.mark.parametrize("name", ["flash_attn", "flashinfer"])
def test_attention_of_the_libraries_that_are_installed(name: str) -> None:
    pytest.importorskip(name)
    case = next(c for c in OPS["paged_attention"].real)
    inputs = case.make_inputs(torch.bfloat16, "cuda", torch.Generator().manual_seed(1))
    plain = {k: v for k, v in inputs.items() if k not in ("query_tag", "key_tag", "log_weight")}
    own = paged_attention(**plain)
    with use(paged_attention=name):
        torch.testing.assert_close(paged_attention(**plain), own, rtol=2e-2, atol=2e-2)
