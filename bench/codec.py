"""What speech out costs: `python -m bench.codec [--device cpu|cuda] [--quick] [--json FILE] [--only CASE]`.

Shipped sizes with random weights, float32 on a CPU and bfloat16 on a GPU; with --quick on a CPU a few channels. The peer is the
plain torch modules over the same frames with the guidance branches batched, in the same process and in turns; on a GPU also
torch.compile with CUDA graphs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from bench.ceilings import graphed
from bench.peers import euler_step
from bench.record import Record, Times, interleaved, parser, report
from torch import Tensor

from innervoice.checkpoint.decoder_tensors import flow_shapes, hift_shapes
from innervoice.checkpoint.safetensors import DummyTensors
from innervoice.checkpoint.speech_decoder import (
    DecoderConfig,
    EncoderConfig,
    EstimatorConfig,
    FlowConfig,
    HiftConfig,
)
from innervoice.codec.glm_voice.chunks import FrameClock, SteadySettings, TokenChunk
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.encoder_stream import EncoderStream
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.glm_voice.hift import Hift
from innervoice.codec.layers import load_tensors
from innervoice_kernels.backend import use
from innervoice_kernels.testing import OPS

TINY = (
    Path(__file__).resolve().parent.parent
    / "engine"
    / "innervoice"
    / "assets"
    / "tiny"
    / "glm-4-voice-decoder"
)
PLAIN, COMPILED = "plain torch modules", "torch.compile, CUDA graphs"
CRIPPLED = 1.05  # of the time of the same operations captured one by one
CLOCK = FrameClock.of(12.5)
FULL_AT = 140  # tokens at the end of the first chunk whose look-back is full
SMALL = DecoderConfig(
    FlowConfig(
        64, 16, 192, 12.5, 1, 0.7, EncoderConfig(32, 32, 2, 64, 2, 10), EstimatorConfig((32, 32), 16, 2, 1, 1)
    ),
    HiftConfig(16, 32, 2, f0_channels=16),
)


class Networks:
    """Flow and vocoder with random weights, and their inputs for a chunk of 26 tokens: of GLM-4-Voice's sizes, or small.

    goals: of the Euler step, the vocoder and both.
    """

    def __init__(self, device: str, small: bool) -> None:
        config = SMALL if small else DecoderConfig()
        self.device, self.is_small, self.mel = device, small, config.flow.mel_channels
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.name = str(self.dtype).removeprefix("torch.")
        self.goals = (None, None, "G16a") if device == "cpu" and not small else ("G9a", "G9c", None)
        with torch.inference_mode():
            self.flow = Flow(
                config.flow, load_tensors(DummyTensors(), flow_shapes(config.flow), self.dtype, device)
            )
            hift = load_tensors(DummyTensors(), hift_shapes(config.hift), torch.float32)
            self.hift = Hift(config.hift, hift, self.dtype, device)

    def frames(self, tokens: int) -> int:
        """Frames of the flow's window in the chunk that ends after so many tokens."""
        shown = TokenChunk(tokens - 26, tokens, SteadySettings(), CLOCK).window_len
        return shown // 8 if self.is_small else shown

    @property
    def new_frames(self) -> int:
        """Frames that the vocoder gets in a chunk."""
        return 24 if self.is_small else 179

    def inputs(self, rows: int, frames: int) -> euler_step.Inputs:
        """Noise, condition, speaker and prompt frames."""
        x, mu = (torch.randn(rows, self.mel, frames, device=self.device) for _ in range(2))
        speaker = torch.randn(rows, self.mel, device=self.device)
        return x, mu, speaker, torch.zeros_like(x)

    def step(self, rows: int, frames: int) -> Callable[[], Tensor]:
        """One Euler step over so many frames, both guidance branches."""
        inputs = self.inputs(rows, frames)
        return lambda: self.flow.solve(*inputs, 1)

    def vocoder(self, rows: int, frames: int) -> Callable[[], Tensor]:
        """Mel frames and their source to samples."""
        mel = torch.randn(rows, self.mel, frames, device=self.device)
        source = 0.1 * torch.randn(rows, 1, 256 * frames, device=self.device)
        return lambda: self.hift.render(mel, source)

    def flops(self, frames: int) -> int | None:
        """Of one Euler step with guidance: 86.2 MFLOP a frame and 45,056 a pair of frames, twice; None for small ones."""
        return None if self.is_small else 2 * int(86.2e6 * frames + 45056 * frames**2)

    def vocoder_flops(self, frames: int) -> int | None:
        """602 MFLOP a frame; None for small ones."""
        return None if self.is_small else int(602e6) * frames


def plainly(run: Callable[[], object]) -> Callable[[], object]:
    """The same by the plain torch modules."""

    def plain() -> object:
        with use("ref"):
            return run()

    return plain


def networks(shipped: Networks, quick: bool) -> Iterator[Record]:
    """G16a, G9: an Euler step and the vocoder against plain torch; together, a chunk of 26 tokens."""
    goals, new = shipped.goals, shipped.new_frames
    rounds = 3 if quick else 5
    common = {"device": shipped.device, "dtype": shipped.name, "peer_name": PLAIN, "unit": "ms"}
    sizes = {"26 tokens": shipped.frames(36), "full look-back": shipped.frames(FULL_AT)}
    for name, frames in list(sizes.items())[: 1 if quick else None]:
        runs = {"step": shipped.step(1, frames), "vocoder": shipped.vocoder(1, new)}
        timed = {part: race(run, shipped.device, rounds) for part, run in runs.items()}
        step, vocoder = timed["step"], timed["vocoder"]
        shape = f"{frames} frames, {name}"
        flops, more_flops = shipped.flops(frames), shipped.vocoder_flops(new)
        yield Record.of(
            "flow, Euler step", shape, step[0], peer=step[1], goal=goals[0], flops=flops, **common
        )
        yield Record.of(
            "vocoder",
            f"{new} frames",
            vocoder[0],
            peer=vocoder[1],
            goal=goals[1],
            flops=more_flops,
            **common,
        )
        steps = SteadySettings().steps
        ours, peer = (
            1e3 * (steps * one.median + other.median) for one, other in zip(step, vocoder, strict=True)
        )
        sound_ms = 1e3 * new * 256 / 22050
        details = {
            "rtf": ours / sound_ms,
            "peer_rtf": peer / sound_ms,
            "sum": f"{steps} steps and the vocoder",
        }
        more = {
            "ours": ours,
            "peer": peer,
            "ratio": peer / ours,
            "goal": goals[2],
            "details": details,
            "n": step[0].n,
        }
        both = None if flops is None or more_flops is None else steps * flops + more_flops
        yield Record("flow and vocoder, a chunk", shape, **(common | more), flops=both)


def race(run: Callable[[], Tensor], device: str, rounds: int) -> tuple[Times, Times]:
    """The same thing by the fast ops and by plain torch, in turns; results must agree before times count."""
    with torch.inference_mode():
        fast, plain = run(), plainly(run)()
        assert isinstance(plain, Tensor)
        error = float((fast.float() - plain.float()).abs().max() / plain.float().abs().max())
        assert error < (1e-3 if device == "cpu" else 0.1), (
            f"the results differ by {error:.3g}: no time is taken"
        )
        times = interleaved({"ours": run, "peer": plainly(run)}, device=device, rounds=rounds, warmup=1)
    return times["ours"], times["peer"]


def compiled(shipped: Networks, quick: bool) -> Iterator[Record]:
    """G9b: a step against torch.compile with CUDA graphs, and beside it the same plain step captured as it stands."""
    frames = shipped.frames(FULL_AT)
    inputs = shipped.inputs(1, frames)

    def run() -> Tensor:
        return shipped.flow.solve(*inputs, 1)

    plain = plainly(run)
    with torch.inference_mode():
        runs = {"ours": run, "peer": euler_step.stepper(shipped.flow, inputs)}
        runs["captured"] = graphed([plain]) if shipped.device == "cuda" else plain
        # Several calls in a row: what each costs the host lies behind the one before.
        times = interleaved(runs, device=shipped.device, rounds=3 if quick else 20, warmup=3, inner=4)
    weak = crippled(times["peer"], times["captured"]) if shipped.device == "cuda" else None
    yield Record.of(
        "flow, Euler step", f"{frames} frames, look-back full chunk", times["ours"], peer=times["peer"], peer_name=COMPILED,
        unit="ms", goal="G9b", device=shipped.device, dtype=shipped.name, invalid=weak,
        details={"captured_ms": 1e3 * times["captured"].median},
    )  # fmt: skip


def crippled(peer: Times, captured: Times) -> str | None:
    """The reason why a compiled peer proves nothing: it is slower than the same operations without a compiler."""
    if peer.median <= captured.median * CRIPPLED:
        return None
    ratio = peer.median / captured.median
    return f"the compiled peer takes {ratio:.2f} of the time of the same operations captured as they stand, over {CRIPPLED}"


def batches(shipped: Networks, quick: bool) -> Iterator[Record]:
    """A step and the vocoder over 1 to 64 sessions at once: time a session."""
    frames, new = shipped.frames(36), shipped.new_frames
    for rows in (1, 4) if quick else (1, 4, 16, 64):
        for name, run in (
            ("flow, Euler step", shipped.step(rows, frames)),
            ("vocoder", shipped.vocoder(rows, new)),
        ):
            with torch.inference_mode():
                times = interleaved({"ours": run}, device=shipped.device, rounds=3, warmup=1)["ours"]
            a_session = Times(tuple(second / rows for second in times.seconds), times.warmup)
            yield Record.of(
                f"{name}, a session",
                f"{rows} sessions",
                a_session,
                unit="ms",
                device=shipped.device,
                dtype=shipped.name,
            )


def reply_length(device: str, quick: bool) -> Iterator[Record]:
    """G17: a chunk at the end of a reply of 5 minutes against the first one with a full look-back, in turns,
    on the tiny decoder.

    The reply is copied just before each of the two, so that either can be made again and again. details:
    every chunk's cost.
    """
    settings = replace(SteadySettings(), steps=2)
    decoder = SpeechDecoder.from_pretrained(TINY, device=device).steady(settings, num_slots=4)
    kept: list[str] = []
    total = 750 if quick else 3750
    decoder.open("reply")
    costs: list[tuple[float, float]] = []
    for token in range(total):
        ends_full = token in (FULL_AT - 1, total - 1 - (total - 10) % 26)
        if ends_full:
            kept.append(f"at {token}")
            decoder.fork("reply", kept[-1])
        decoder.push("reply", [token * 7 % 64])
        if decoder.ready():
            begin = perf_counter()
            decoder.step(["reply"])
            costs.append((token / 12.5, perf_counter() - begin))
    decoder.close("reply")

    def again(source: str) -> Callable[[], None]:
        def make() -> None:
            decoder.fork(source, "twin")
            decoder.push("twin", [1])
            assert len(decoder.step(["twin"])) == 1
            decoder.close("twin")

        return make

    times = interleaved(
        {"first": again(kept[0]), "last": again(kept[1])}, device=device, rounds=4 if quick else 16, warmup=2
    )
    shape = f"{total / 12.5:.0f} s of sound, look-back of {settings.look_back} frames"
    peer = {"peer": times["first"], "peer_name": "first chunk of full look-back"}
    details = {
        "steps": settings.steps,
        "sound_s": [at for at, _ in costs],
        "cost_s": [cost for _, cost in costs],
    }
    ratio = times["last"].median / times["first"].median
    more = {"goal": "G17", "ratio": ratio, "dtype": "float32", "unit": "ms", "details": details}
    yield Record.of("a chunk at the reply's end", shape, times["last"], device=device, **peer, **more)


def borders(device: str) -> Iterator[Record]:
    """The largest step of the sound where chunks meet, beside the 99.9th percentile of those inside chunks;
    tiny decoder.
    """
    decoder = SpeechDecoder.from_pretrained(TINY, device=device).steady(num_slots=1)
    decoder.open("reply")
    decoder.push("reply", [token * 7 % 64 for token in range(88)])
    decoder.finish("reply")
    parts = [torch.from_numpy(chunk.samples) for chunk in decoder.step()]
    samples = torch.cat(parts)
    steps, joints = samples.diff().abs(), torch.tensor([len(part) for part in parts]).cumsum(0)[:-1]
    inside = torch.ones(len(steps), dtype=torch.bool).index_fill(0, joints - 1, False)
    most, usual = float(steps[joints - 1].max()), float(steps[inside].double().quantile(0.999))
    spectrum = (
        torch.stft(samples, 254, 256, window=torch.hann_window(254), return_complex=True)
        .abs()
        .clamp(min=1e-5)
    )
    details = {
        "spectrogram_db": (20 * spectrum.log10()).round().int().T.tolist(),
        "border_frames": (joints / 256).tolist(),
    }
    shape = f"{len(joints)} borders, {len(samples)} samples"
    more = {
        "peer": usual,
        "peer_name": "99.9th percentile inside chunks",
        "ratio": usual / most,
        "details": details,
    }
    yield Record(
        "sample steps at borders",
        shape,
        "of full scale",
        device,
        most,
        dtype="float32",
        n=len(joints),
        **more,
    )


def parts(shipped: Networks, quick: bool) -> Iterator[Record]:
    """Time the parts of a chunk of 26 tokens beside the networks: flow encoder, length regulator, both
    transforms.
    """
    device, dtype, flow = shipped.device, shipped.dtype, shipped.flow
    settings, frames = SteadySettings(), shipped.frames(FULL_AT)
    tokens = settings.chunk + flow.config.encoder.block_size - 1
    encoder = EncoderStream(flow.encoder, settings.encoder_blocks, tokens, device)
    x = torch.randn(1, tokens, flow.config.encoder.input_size, device=device, dtype=dtype)
    n, start, closed = (
        torch.tensor([value], device=device) for value in (tokens, 100 + settings.encoder_blocks * 10, 30)
    )
    _, state = encoder(x, {}, n, start, closed)
    states = torch.randn(1, shipped.mel, frames, device=device, dtype=dtype)
    transforms = {name: next(iter(OPS[name].real)) for name in ("stream_stft", "stream_istft")}
    runs: dict[str, tuple[str, Callable[[], Tensor]]] = {
        "flow's encoder": (
            f"{tokens} tokens, {encoder.cache_len} cached",
            lambda: encoder(x, state, n, start, closed)[0],
        ),
        "length regulator": (
            f"{frames} frames",
            lambda: flow.regulator.smooth(states, torch.tensor([frames - 5], device=device)),
        ),
    }
    for name, case in transforms.items():
        inputs, op = case.make_inputs(torch.float32, device, torch.Generator().manual_seed(0)), OPS[name]
        runs[name] = (case.name, lambda op=op, inputs=inputs: op.fast(**inputs)[0])  # type: ignore[misc]
    for name, (shape, run) in runs.items():
        ours, peer = race(run, device, 5 if quick else 25)
        yield Record.of(
            name, shape, ours, peer=peer, peer_name=PLAIN, unit="ms", device=device, dtype=shipped.name
        )


def attentions(shipped: Networks, quick: bool) -> Iterator[Record]:
    """An Euler step whose transformers are torch's own, SDPA and cuBLAS, beside those of the own kernel: 1 session and 16."""
    frames = shipped.frames(36 if quick else FULL_AT)
    for rows in (1,) if quick else (1, 16):
        run = shipped.step(rows, frames)

        def by_torch(run: Callable[[], Tensor] = run) -> Tensor:
            with use(flow_block="ref"):
                return run()

        with torch.inference_mode():
            times = interleaved(
                {"ours": run, "torch": by_torch}, device=shipped.device, rounds=3 if quick else 10, warmup=3
            )
        yield Record.of(
            "flow, Euler step, own transformers",
            f"{rows} sessions, {frames} frames",
            times["ours"],
            peer=times["torch"],
            peer_name="SDPA and cuBLAS",
            unit="ms",
            device=shipped.device,
            dtype=shipped.name,
        )


CASES = ("networks", "attentions", "batches", "parts", "reply_length", "borders", "compiled")


_OF_NETWORKS = {
    "networks": networks, "attentions": attentions, "batches": batches, "parts": parts, "compiled": compiled,
}  # fmt: skip


def records(args: argparse.Namespace) -> Iterator[Record]:
    """All of it, or --only one case."""
    names = (
        args.only.split(",")
        if args.only
        else [name for name in CASES if args.device == "cuda" or name != "compiled"]
    )
    shipped = None
    for name in names:
        if name in ("reply_length", "borders"):
            yield from (
                reply_length(args.device, args.quick) if name == "reply_length" else borders(args.device)
            )
            continue
        shipped = shipped or Networks(args.device, small=args.quick and args.device == "cpu")
        yield from _OF_NETWORKS[name](shipped, args.quick)


def main() -> None:
    """Run as the contract of bench/record.py has it."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", metavar="CASE,CASE", help=f"some of {', '.join(CASES)}")
    args = arguments.parse_args()
    unknown = [name for name in (args.only or CASES[0]).split(",") if name not in CASES]
    if unknown:
        arguments.error(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
    report(records(args), args.json, rehearsal=args.quick and args.device == "cpu")


if __name__ == "__main__":
    main()
