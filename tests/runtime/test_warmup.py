"""Nothing is compiled once an engine is warm: the kernels of steps, prompts and speech at GLM-4-Voice's sizes, on a device
that only notes them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from benches import BENCH, bench
from pretend_device import PretendDevice, specialised

from innervoice.checkpoint.decoder_tensors import flow_shapes, hift_shapes
from innervoice.checkpoint.speech_decoder import DecoderConfig
from innervoice.codec import call_graphs
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.flow_graphs import StepGraphs
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.glm_voice.hift_graphs import VocoderGraphs
from innervoice.codec.glm_voice.steady import SteadyOutput
from innervoice.codec.speech_codec import rehearse
from innervoice.model.device_step import DeviceStep, RowStart
from innervoice.model.device_step.graphs import BucketGraphs, StepKind
from innervoice.model.pages import PagePool, PageTable
from innervoice.model.runner import ModelRunner
from innervoice.model.sequence import Sequence
from innervoice.runtime import warmup
from innervoice.schedule import Schedule, Segment, compile_schedule
from innervoice.telemetry.trace import Tracer
from innervoice.types import Sampling
from innervoice_kernels.backend import use
from innervoice_kernels.graphs import capturing
from innervoice_kernels.jit import HAS_TRITON, INTERPRETED, Launch, recorded
from innervoice_kernels.sampling.fuse import Fusing, fuse

pytestmark = pytest.mark.skipif(
    not HAS_TRITON or INTERPRETED, reason="needs Triton's compiler, not its interpreter"
)

PAGE, ROWS, LENGTH = 16, 256, 8192
Keys = set[tuple[str, str]]


@pytest.fixture(autouse=True)
def device() -> Iterator[PretendDevice]:
    """Kernels are chosen as on a GPU, and none runs."""
    with use("triton"), torch.inference_mode(), PretendDevice() as made, recorded():
        yield made


def keys_of(launches: Iterable[Launch]) -> Keys:
    return set(specialised(launches))


class Core:
    """The parts of a core that a warm-up steps, with GLM-4-Voice's model of one layer, or one of experts."""

    def __init__(self, to: Any = None, layers: int = 1, *, experts: bool = False) -> None:
        shapes = bench("shapes")
        data = shapes.QWEN3_MOE if experts else shapes.GLM_4_VOICE
        model = shapes.blank_model(data | {"num_layers": layers, "num_hidden_layers": layers}, to)
        self.pool = PagePool(ROWS * 64, PAGE)
        self.pages = self
        self.max_model_len = LENGTH
        self.runner = ModelRunner(model, ROWS * 64, PAGE, Tracer(), backend="plain", max_model_len=LENGTH)
        self.runner.splits_head = True
        self.settings = type("Settings", (), {"prefill_chunk": 256})
        self.device_step = DeviceStep(model, self.runner.kv, max_rows=ROWS, max_model_len=LENGTH)

    def new_sequence(self) -> Sequence:
        return Sequence(PageTable(self.pool))

    def warm(self) -> Keys:
        with recorded() as launches:
            warmup.try_prompts(self)  # type: ignore[arg-type]
        return keys_of([*launches, *self.device_step.launches()])

    def feed(self, rows: list[tuple[int, int]], weighted: bool, outputs: Any) -> list[Launch]:
        """A step of rows of (cached, new) tokens."""
        with warmup.sequences(self, [cached + new for cached, new in rows]) as sequences:  # type: ignore[arg-type]
            for sequence, (cached, _) in zip(sequences, rows, strict=True):
                sequence.num_cached = cached
                sequence.begin_reply(0.5 if weighted else 0.0)
            with recorded() as launches:
                self.runner.forward(sequences, outputs)
        return launches


@pytest.mark.parametrize(
    ("to", "steps"), [(None, 60), ("int4", 40), ("fp8", 40), pytest.param(None, 400, marks=pytest.mark.slow)]
)
def test_random_steps_need_no_kernel_that_the_warm_up_did_not(to: str | None, steps: int) -> None:
    hold_random_steps(Core(to), steps)


@pytest.mark.parametrize("to", [None, "int4"])
def test_random_steps_of_experts_wait_for_nothing_and_need_no_other_kernel(
    to: str | None, device: PretendDevice
) -> None:
    """The host never learns which experts are hit."""
    core = Core(to, experts=True)
    model, x = core.runner.model, torch.empty(9, 2048, dtype=torch.bfloat16, device="meta")
    device.waits.clear()
    with recorded() as launches:
        model._feed_forward(model.weights.layers[0], x)
    assert device.waits == [] and len(launches) == 5
    hold_random_steps(core, 20)


def test_contexts_need_no_kernel_and_no_graph_that_the_warm_up_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any number of them in any number of rows: combined by the host, and by the graphs of an engine that was made to
    combine; of another engine each graph comes with the first step that needs it.
    """
    core = Core()
    warm, rng = core.warm() | keys_of(core.device_step.launches(fused=(True,))), random.Random(2)
    launches: list[Launch] = []
    for _ in range(20):
        groups = [
            Fusing("pragmatic", log_prior=(-1.0,) * rng.randint(2, 9)) for _ in range(rng.randint(1, 5))
        ]
        num = sum(group.size for group in groups)
        with warmup.sequences(core, [1] * num) as rows:  # type: ignore[arg-type]
            logits = core.runner.forward(rows)
        with recorded() as made:
            fuse(logits, groups)
        launches += made
    assert launches and keys_of(launches) - warm == set()

    monkeypatch.setattr("innervoice.model.device_step.step.compile_all", lambda launches: None)
    for fused in (True, False):
        step = DeviceStep(core.runner.model, core.runner.kv, max_rows=ROWS, max_model_len=LENGTH, fused=fused)
        step._use_graphs = True
        step.graphs = BucketGraphs(step._launch, (False,), capture=lambda run: run, seconds=lambda run: 1.0)
        with recorded():
            step.warmup()
            num_graphs = len(step.graphs)
            for _ in range(200):
                num_rows = rng.randint(2, ROWS)
                bucket = next(bucket for bucket in step.buckets if bucket >= num_rows)
                step._once(bucket, StepKind(rng.random() < 0.5, True))
        assert (step.stats().eager_steps == 0) == fused == (len(step.graphs) == num_graphs)
        num_buckets = len(step.buckets)
        assert num_graphs == 2 * (num_buckets + (num_buckets - 1) * fused)


def hold_random_steps(core: Core, steps: int) -> None:
    """Steps of prompts and single tokens of any lengths, weighted or not, and of every number of rows on the device."""
    rng = random.Random(1)
    warm = core.warm()
    launches: list[Launch] = []
    for _ in range(steps):
        num = rng.choice([1, 1, 2, 3, 4, 6, 8, 12, 16, 24, 40])
        news = [rng.randint(1, max(1, 256 // num)) for _ in range(num)]
        rows = [(rng.choice([0, 0, 16 * rng.randint(0, 20), rng.randint(0, 400)]), new) for new in news]
        outputs = rng.choice([(), None, [(151, 4000)], [(5, 70), (152353, 168737)]])
        launches += core.feed(rows, rng.random() < 0.3, outputs)
    assert keys_of(launches) - warm == set()
    assert len(warm) < 80, "kernels for one and the same work"


def decoder(settings: SteadySettings, num_slots: int = 16) -> SteadyOutput:
    """Speech at the shipped sizes, with one layer of those that are alike."""
    config = DecoderConfig()
    parts = config.flow
    encoder, estimator = (
        replace(parts.encoder, num_layers=1),
        replace(parts.estimator, num_blocks=1, num_mid_blocks=1),
    )
    parts = replace(parts, encoder=encoder, estimator=estimator)
    flow = Flow(parts, blanks(flow_shapes(parts), torch.bfloat16))
    hift = Hift(config.hift, blanks(hift_shapes(config.hift), torch.float32), torch.bfloat16, "meta")
    return SteadyOutput(flow, hift, settings, num_slots=num_slots, device="meta")


def blanks(shapes: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


def speak(output: SteadyOutput, names: list[str], total: int) -> list[Launch]:
    """The launches of replies of so many tokens, pushed token by token."""
    with recorded() as launches:
        for name in names:
            output.open(name)
        for token in range(total):
            for name in names:
                output.push(name, [token % 100])
            output.step(names)
        for name in names:
            output.finish(name)
        output.step(names)
        for name in names:
            output.close(name)
    return launches


def test_speech_needs_no_kernel_that_the_warm_up_did_not() -> None:
    """First, later and last chunks, of one reply and of three, the longest of 300 tokens."""
    output = decoder(SteadySettings(steps=1))
    with recorded() as launches:
        rehearse(output, 1, "warm")
    warm = keys_of(launches)
    spoken = ((["a"], 300), (["a", "b", "c"], 93), (["a"], 3), (["a"], 40))
    new = keys_of(launch for names, total in spoken for launch in speak(output, names, total)) - warm
    assert output.errors == {} and new == set()


def test_256_replies_fit_into_one_call_of_the_codec() -> None:
    """Only the first number of a grid may be above 65,535."""
    output = decoder(SteadySettings(steps=1), num_slots=256)
    with recorded() as launches:
        rehearse(output, 256, "many", num_chunks=1)
    assert output.errors == {} and len(launches) > 200
    assert max(max(launch.grid[1:], default=1) for launch in launches) <= 65_535
    rows = [launch.grid for launch in launches if launch.kernel.__name__ == "_snake_kernel"]
    assert max(grid[0] for grid in rows) == 256 * 256


def test_a_chunk_of_speech_waits_once_and_launches_few_calls(
    device: PretendDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later chunk of one reply and of four, with the graphs of a warm-up: the vocoder's launches, and all waits."""
    monkeypatch.setattr(call_graphs, "is_recording", lambda: False)
    output = decoder(SteadySettings(steps=2))
    networks = output._networks
    flow, vocoder = (
        networks._flow,
        VocoderGraphs(networks._vocoder, networks._hift_state, 16, "meta", capture=lambda run: lambda: None),
    )
    flow.graphs, networks.vocoder_graphs = StepGraphs(flow, "meta", capture=lambda run: lambda: None), vocoder
    with capturing():
        for rows in (1, 4):
            rehearse(output, rows, "warm")
    counts: dict[str, int] = {}
    for rows in (1, 4):
        names = [f"{rows}-{i}" for i in range(rows)]
        for name in names:
            output.open(name)
            output.push(name, [0] * 62)
            output.step([name])
            output.push(name, [1] * 26)
        replays = flow.graphs.num_replays
        device.waits.clear()
        with recorded() as launches:
            fed = networks.next_frames([output.table.find(name) for name in names])
            assert device.waits == [] and flow.graphs.num_replays == replays + 2
            kernels = len(launches)
            device.launched.clear()
            made = networks.vocode(fed, last=False)
            assert not any(isinstance(one, Exception) for one in made)
        counts[f"{rows} rows"] = len(launches) - kernels + sum(device.launched.values())
        assert len(device.waits) == 1, device.waits
    assert max(counts.values()) <= 60, counts
    assert output.errors == {}


def test_a_prompt_waits_for_nothing(device: PretendDevice) -> None:
    """Its pieces, and the row that takes it over, with its pages and orders; the first token is read a step later."""
    core = Core()
    device.waits.clear()
    core.feed([(0, 200), (48, 56)], True, ())
    program = compile_schedule(
        Schedule((Segment("transcript"),)), bench("shapes").vocabulary_of(core.runner.model.config)
    )
    sampling = Sampling(temperature=0.8, top_k=5, top_p=0.9, seed=1, max_new_tokens=9, ignore_eos=True)
    core.device_step.begin(3, RowStart(5, 199, list(range(13)), program, sampling))
    core.device_step.rows.set_pages({row: list(range(40)) for row in range(ROWS)})
    core.device_step.rows.order({3: 4})
    assert device.waits == []


def test_attention_launches_nothing_that_only_returns() -> None:
    """Prompts have one kernel, single tokens another; a step of both has both."""
    core, kernels = Core(), {"_decode_kernel", "_prefill_kernel"}

    def attention(rows: list[tuple[int, int]]) -> set[str]:
        return {launch.kernel.__name__ for launch in core.feed(rows, False, ())} & kernels

    assert attention([(0, 200), (48, 56)]) == {"_prefill_kernel"}
    assert attention([(7, 1), (20, 1)]) == {"_decode_kernel"}
    assert attention([(7, 1), (0, 40)]) == kernels


def test_a_prompt_whose_ids_nobody_wants_makes_no_logits(device: PretendDevice) -> None:
    """The last piece of a prompt is the first that anybody draws from."""
    runner = Core().runner
    hidden = torch.empty(2, runner.model.config.hidden_size, dtype=torch.bfloat16, device="meta")
    device.launched.clear()
    with recorded() as launches:
        logits = runner._head(hidden, ())
    assert logits.shape == (2, 0) and launches == [] and device.launched.total() == 0


@pytest.mark.parametrize("to", [None, "int8", "fp8", "int4"])
def test_a_step_of_any_weights_is_as_lean_as_one_of_bfloat16(device: PretendDevice, to: str | None) -> None:
    """Nodes of the graph of a step of up to 16 rows, for 40 layers: five a layer, and the two ends."""
    nodes = []
    for layers in (1, 2):
        core = Core(to, layers)
        device.launched.clear()
        launches = core.device_step.launches((False,), (16,))
        nodes.append(len(launches) + sum(device.launched.values()))
    one, two = nodes
    assert two - one == 5
    assert one + 39 * (two - one) <= (206 if to is None else 210), nodes


@pytest.mark.parametrize("to", [None, "int8", "fp8", "int4"])
def test_every_kernel_of_a_step_is_compiled_ahead_of_time(to: str | None) -> None:
    """Weighted or not, of contexts or not: the table of what is compiled for sm_90 without a GPU names it."""
    table = json.loads((BENCH / "aot_sm90.json").read_text())
    launches = Core(to).device_step.launches(buckets=(16, 64), fused=(False, True))
    names = {launch.kernel.__name__.strip("_").removesuffix("_kernel") for launch in launches}
    assert {"prepare", "summary", "pick", "stats", "fuse", "listener"} <= names
    assert names <= {record["name"] for record in table}
