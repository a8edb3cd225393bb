"""The residual-VQ codecs: real-time factors of Mimi (goal G16b), EnCodec and DAC beside transformers'
modules, and of streams.

Published sizes with random weights; a real-time factor is seconds of work a second of sound. --threads: the
goal is for 2.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from bench.record import ROOT, Record, Times, device_name, interleaved, parser, report

from innervoice.codec.residual_vq.codec import Codec
from innervoice.codec.residual_vq.codes import Codes
from innervoice_kernels import _C

KINDS = {
    "mimi": ("mimi", {}, 8),
    "encodec 24 kHz": ("encodec", {}, 8),
    "dac 44 kHz": ("dac", {"sampling_rate": 44100, "downsampling_ratios": [2, 4, 8, 8]}, 9),
}
ISA = _C.available_isas()[-1]  # of native code on a CPU
STREAMS = ((1, 1), (1, 4), (16, 1))  # sessions, frames a step


class Case:
    """A codec with the module that wrote its checkpoint, a sound, and its codes."""

    def __init__(self, name: str, seconds: float, device: str, dtype: torch.dtype) -> None:
        kind, sizes, num = KINDS[name]
        self.name, self.seconds, self.kind = name, seconds, kind
        models = _models()
        self.module = models.make_module(kind, sizes)
        with tempfile.TemporaryDirectory() as folder:
            self.codec = Codec.from_pretrained(
                models.save(self.module, Path(folder)), device=device, dtype=dtype
            )
        self.module = self.module.to(device, dtype)
        frames = round(seconds * self.codec.sample_rate / self.codec.frame_len)
        samples = 0.1 * np.random.default_rng(0).standard_normal(frames * self.codec.frame_len).astype(
            np.float32
        )
        self.samples, self.num, self.device, self.dtype = samples, num, device, dtype
        self.codes = self.codec.encode((samples, self.codec.sample_rate), num_codebooks=num)

    def decode_peer(self) -> Any:
        """transformers' decode of the same codes."""
        ids = torch.from_numpy(np.stack(self.codes.ids))[None].to(self.device)
        with torch.inference_mode():
            if self.kind == "dac":
                return self.module.decode(audio_codes=ids).audio_values.cpu()
            return (
                self.module.decode(ids[None], [None]) if self.kind == "encodec" else self.module.decode(ids)
            ).audio_values.cpu()

    def encode_peer(self) -> Any:
        """transformers' encode of the same sound."""
        x = torch.from_numpy(self.samples)[None, None].to(self.device, self.dtype)
        with torch.inference_mode():
            if self.kind == "dac":
                return self.module.encode(x, n_quantizers=self.num).audio_codes.cpu()
            if self.kind == "encodec":
                return self.module.encode(x, bandwidth=6.0).audio_codes.cpu()
            return self.module.encode(x, num_quantizers=self.num).audio_codes.cpu()

    def checked(self) -> None:
        """No number for a codec that decodes something else."""
        theirs = self.decode_peer().flatten().float().numpy()
        ours = self.codec.decode(self.codes).samples
        bound = 1e-4 if self.dtype is torch.float32 else 5e-2
        scale = max(1.0, float(np.abs(theirs).max()))
        worst = float(np.abs(ours - theirs[: len(ours)]).max()) / scale
        assert worst <= bound, f"{self.name}: differs from transformers by {worst:.2g}"


def _models() -> ModuleType:
    """tests/support/codec_models.py; the root, whose folder kernels transformers would take for a package,
    leaves the path.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if str(ROOT / "tests" / "support") not in sys.path:
        sys.path.append(str(ROOT / "tests" / "support"))
    return importlib.import_module("codec_models")


def whole(case: Case, rounds: int, shape: str) -> Iterator[Record]:
    """Decode and encode of a whole sound."""
    codec, sound = case.codec, (case.samples, case.codec.sample_rate)
    runs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "decode": (lambda: codec.decode(case.codes), case.decode_peer),
        "encode": (lambda: codec.encode(sound, num_codebooks=case.num), case.encode_peer),
    }
    for name, (ours, peer) in runs.items():
        times = interleaved({"ours": ours, "peer": peer}, device=case.device, rounds=rounds, warmup=1)
        yield record(
            f"{case.name} {name}",
            shape,
            case,
            times["ours"],
            times["peer"],
            name == "decode" and case.kind == "mimi",
        )


def streams(case: Case, sessions: int, frames: int, rounds: int) -> Record:
    """A step of sessions that each bring so many frames, in real-time factor of one second of all sessions'
    sound.
    """
    codec, size = case.codec, frames * case.codec.frame_len / case.codec.sample_rate
    stream = codec.stream_decode(sessions, chunk_s=size)
    slots = [stream.open() for _ in range(sessions)]
    part = Codes(codec.kind, tuple(row[:frames] for row in case.codes.ids))
    for slot in slots:  # past the window of Mimi's attention, and past what EnCodec waits for
        for _ in range(130 // frames):
            stream.push(slot, part)
    stream.drain()

    def step() -> None:
        for slot in slots:
            stream.push(slot, part)
        assert len(stream.step()) == sessions

    times = interleaved({"ours": step}, device=case.device, rounds=rounds, warmup=2)["ours"]
    scaled = Times(tuple(one / (size * sessions) for one in times.seconds), times.warmup)
    return Record.of(
        f"{case.name} stream decode", f"{sessions} sessions, {frames} frames a step", scaled, unit="s", dtype=str(case.dtype)[6:],
        device=device_name(case.device),
        details={"step_ms": times.median * 1e3, "per": "second of one session's sound", "isa": ISA},
    )  # fmt: skip


def record(name: str, shape: str, case: Case, ours: Times, peer: Times, is_goal: bool) -> Record:
    """Real-time factors; the goal's ratio is our own."""
    scaled = [
        Times(tuple(one / case.seconds for one in times.seconds), times.warmup) for times in (ours, peer)
    ]
    more: dict[str, Any] = {"goal": "G16b", "ratio": scaled[0].median} if is_goal else {}
    return Record.of(
        name, shape, scaled[0], peer=scaled[1], unit="s", dtype=str(case.dtype)[6:], device=device_name(case.device),
        peer_name="transformers",
        details={"per": "second of sound", "times_peer": peer.median / ours.median, "isa": ISA}, **more,
    )  # fmt: skip


def records(device: str, quick: bool, kinds: list[str], seconds: float) -> Iterator[Record]:
    """One codec after the other."""
    for name in kinds:
        case = Case(name, 1.0 if quick else seconds, device, torch.float32)
        case.checked()
        yield from whole(case, 2 if quick else 7, f"{case.seconds:g} s, {case.num} codebooks")
        if case.kind != "dac":
            for sessions, frames in STREAMS[: 1 if quick else None]:
                first = getattr(case.codec.decoder, "first_frames", 1)
                yield streams(case, sessions, max(frames, first), 3 if quick else 15)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--only", choices=KINDS, help="one codec")
    arguments.add_argument("--seconds", type=float, default=4.0, help="length of the sound")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    kinds = [given.only] if given.only else list(KINDS)[: 1 if given.quick else None]
    report(records(given.device, given.quick, kinds, given.seconds), given.json)


if __name__ == "__main__":
    main()
