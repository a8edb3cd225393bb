"""What the device can do at best, measured in the same run: a copy, and a matrix product. `python -m bench.ceilings`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from bench.record import Record, Times, device_name, gpu_state, interleaved, parser, report

from innervoice_kernels.graphs import GraphPool


@dataclass(frozen=True)
class Ceilings:
    """copy_bw: bytes read and written a second by a large copy; gemm_flops: FLOP a second of a large product in `dtype`."""

    copy_bw: float
    gemm_flops: float

    @property
    def details(self) -> dict[str, float]:
        """For Record.details."""
        return {"copy_bw": self.copy_bw, "gemm_flops": self.gemm_flops}

    def floor_s(self, num_bytes: float, flops: float) -> float:
        """Seconds that neither memory nor arithmetic lets one beat."""
        return max(num_bytes / self.copy_bw, flops / self.gemm_flops)


def measure(device: str, quick: bool = False) -> tuple[Ceilings, list[Record]]:
    """A copy of 4 GiB (64 MiB on a CPU) and a product of 8192 (1024) squared, in bfloat16 (float32), of random numbers."""
    on_gpu = device == "cuda"
    num_bytes, side = (4 << 30, 8192) if on_gpu else (64 << 20, 1024)
    if quick:
        num_bytes, side = num_bytes >> 4, side >> 1
    dtype = torch.bfloat16 if on_gpu else torch.float32
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source), "gemm": lambda: a @ b}
    times = interleaved(runs, device=device, rounds=3 if quick else 10)
    flops = 2 * side**3
    found = Ceilings(2 * num_bytes / times["copy"].median, flops / times["gemm"].median)
    state = gpu_state() if on_gpu else {}
    name = device_name(device)
    made = [
        Record.of(
            "copy",
            f"{num_bytes >> 20} MiB",
            times["copy"],
            unit="ms",
            device=name,
            bytes=2 * num_bytes,
            **state,
        ),
        Record.of(
            "gemm",
            f"{side} squared",
            times["gemm"],
            unit="ms",
            device=name,
            dtype=str(dtype)[6:],
            flops=flops,
            **state,
        ),
    ]
    return found, made


def graphed(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """All calls as one CUDA graph; the function replays it. Each is run first, so that what it compiles is compiled."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)

    def all_of_them() -> None:
        for call in calls:
            call()

    return GraphPool("cuda").capture(all_of_them)


def per_call(times: Times, calls: int) -> Times:
    """Of one of so many calls that were timed together."""
    return Times(tuple(s / calls for s in times.seconds), times.warmup)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__).parse_args(argv)

    def records() -> Iterator[Record]:
        yield from measure(arguments.device, arguments.quick)[1]

    report(records(), arguments.json)


if __name__ == "__main__":
    main()
