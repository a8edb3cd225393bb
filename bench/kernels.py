"""Every op at GLM-4-Voice's shapes: its time, share of the ceiling and peers; decode attention and the head (goals G5, G6, G8).

`--only TEXT,TEXT` measures the ops whose name holds one of them. An op whose check against float64 fails gets a record that
says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bench.ceilings import Ceilings, graphed, measure, per_call
from bench.peers.attention import flashinfer_calls, sdpa_calls
from bench.record import Record, Times, device_name, gpu_state, interleaved, parser, report
from torch import Tensor
from torch.nn import functional as F

from innervoice_kernels.language.attention_decode import Workspace
from innervoice_kernels.language.step_attention import step_attention
from innervoice_kernels.sampling.cursor import SLOTS, Programs, Rows, prepare, request_columns
from innervoice_kernels.sampling.head import head_sample, head_step
from innervoice_kernels.sampling.sample import Draw
from innervoice_kernels.sampling.sample_pick import Offers
from innervoice_kernels.testing import OPS, Case, Op, check
from innervoice_kernels.testing.case import generator_on

CACHE = (
    192 << 20
)  # bytes of inputs that runs rotate over, so that they come from memory and not from the L2 cache
MOST_SETS = 32
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.9  # of the draws at the head
PAGE = 16


@dataclass(frozen=True)
class ModelShape:
    """What attention and the head are measured at: GLM-4-Voice's, or small, to be tested on a CPU."""

    heads: int = 32
    groups: int = 2
    width: int = 128
    hidden: int = 4096
    vocabulary: int = 168960
    context: int = 2048
    batches: tuple[int, ...] = (1, 8, 32, 128)
    num_layers: int = 40


SMALL = ModelShape(4, 2, 32, 64, 512, 64, (1, 32), 2)


def _norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w, eps)


def _linear(
    x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, norm: Any = None
) -> Tensor:
    y = F.linear(x if norm is None else _norm(x, norm.w, norm.eps), w, bias)
    return y if residual is None else y + residual


# What torch itself has for an op, fused as far as it goes; the others are held against their own reference.
TORCH: dict[str, Callable[..., Any]] = {
    "rms_norm": _norm,
    "silu_mul": lambda x: F.silu(x[..., : x.shape[-1] // 2]) * x[..., x.shape[-1] // 2 :],
    "linear": _linear,
}


class Kernels:
    """The measurements of one device."""

    def __init__(self, device: str, quick: bool, only: str | None) -> None:
        self.device, self.quick, self.only = device, quick, only
        self.on_gpu = device == "cuda"
        self.rounds = 3 if quick else 15
        self.shape = ModelShape() if self.on_gpu else SMALL
        self.ceilings: Ceilings

    def records(self) -> Iterator[Record]:
        self.ceilings, made = measure(self.device, self.quick)
        yield from made
        # What has a goal comes first: a run may be cut off.
        if self.wants("decode_attention"):
            for rows in self.shape.batches:
                yield from self.attention(rows)
        if self.wants("head_step"):
            for rows in self.shape.batches:
                yield self.head(rows)
        for op in OPS.values():
            if self.wants(op.name):
                for case in (op.cases if self.quick or not op.real else op.real)[: 1 if self.quick else None]:
                    yield self.op(op, case)

    def wants(self, name: str) -> bool:
        """Whether --only leaves it in."""
        return self.only is None or any(word in name for word in self.only.split(","))

    def op(self, op: Op, case: Case) -> Record:
        """The public op beside torch's own or its reference, on inputs in turn."""
        dtype = torch.bfloat16 if self.on_gpu and torch.bfloat16 in op.dtypes else op.dtypes[0]
        peer, peer_name = (TORCH[op.name], "torch") if op.name in TORCH else (op.ref, "plain torch")
        common: dict[str, Any] = {
            "device": device_name(self.device),
            "dtype": str(dtype).removeprefix("torch."),
        }
        try:
            error = check(op, case, dtype, self.device)
        except AssertionError as failure:
            return Record(
                op.name, case.name, "us", ours=None, invalid=f"the check failed: {failure}", **common
            )
        inputs = case.make_inputs(dtype, self.device, generator_on(self.device, 0))
        num_bytes = op.num_bytes(inputs, op.outputs(op.fast, inputs))
        sets = [
            inputs,
            *(copy.deepcopy(inputs) for _ in range(min(MOST_SETS, CACHE // max(num_bytes, 1)) - 1)),
        ]
        runs, captured = self.runs(
            {"ours": op.fast, "peer": peer}, sets if self.on_gpu and not self.quick else sets[:1]
        )
        with torch.inference_mode():
            times = interleaved(
                {k: run for k, (run, _) in runs.items()}, device=self.device, rounds=self.rounds
            )
        ours, theirs = (per_call(times[k], runs[k][1]) for k in ("ours", "peer"))
        return Record.of(
            op.name, case.name, ours, peer=theirs, peer_name=peer_name, bytes=num_bytes,
            details=self.ceilings.details | {"error": error, "captured": captured} | self.share(num_bytes, len(sets), ours),
            **common, **self.state(),
        )  # fmt: skip

    def share(self, num_bytes: int, num_sets: int, ours: Times) -> dict[str, float]:
        """The bandwidth over a copy's; nothing where all inputs together stay in the cache."""
        if num_bytes * num_sets < CACHE // 2:
            return {}
        return {"share_of_copy": num_bytes / ours.median / self.ceilings.copy_bw}

    def runs(
        self, functions: dict[str, Callable[..., Any]], sets: list[dict[str, Any]]
    ) -> tuple[dict[str, tuple[Callable[[], object], int]], bool]:
        """Each function over all sets as one graph, or, where one of them cannot be captured, as it is -> runs, and which."""

        def calls(function: Callable[..., Any]) -> list[Callable[[], object]]:
            return [lambda inputs=inputs: function(**inputs) for inputs in sets]

        def eager(function: Callable[..., Any]) -> Callable[[], object]:
            return lambda: [call() for call in calls(function)]

        # What waits for the host is not captured at all: a capture that breaks off would be heard of in later records.
        if self.on_gpu and all(_is_queued(eager(function)) for function in functions.values()):
            return {name: (graphed(calls(function)), len(sets)) for name, function in functions.items()}, True
        return {name: (eager(function), len(sets)) for name, function in functions.items()}, False

    def attention(self, rows: int) -> Iterator[Record]:
        """Attention of a decode step, against FlashInfer, SDPA and the copy, of as many layers as do not fit the L2 cache.

        Ours is what a step runs, which also adds the bias to the new token's queries, keys and values, rotates them and stores
        the latter; the peers attend alone.
        """
        s = self.shape
        pages = s.context // PAGE
        each = 2 * rows * s.context * s.groups * s.width * self.dtype.itemsize
        num_layers = max(2, min(s.num_layers, CACHE // each))
        shape = (rows * pages, PAGE, s.groups, s.width)
        layers = [(self.normal(*shape), self.normal(*shape)) for _ in range(num_layers)]
        table = torch.randperm(rows * pages, device=self.device).int().reshape(rows, pages)
        q, out = self.normal(rows, s.heads, s.width), self.normal(rows, s.heads, s.width)
        size = (s.heads + 2 * s.groups) * s.width
        qkv, bias, angles = self.normal(rows, size), self.normal(size), self.normal(rows, s.width // 4)
        cos, sin = angles.cos(), angles.sin()
        lengths = torch.full((rows,), s.context, dtype=torch.int32, device=self.device)
        workspace = Workspace.allocate(rows, s.heads, s.groups, s.width, s.context, q.device)

        def ours(k: Tensor, v: Tensor) -> Callable[[], object]:
            return lambda: step_attention(
                qkv, cos, sin, k, v, table, lengths, s.width**-0.5, True, bias, out=out, workspace=workspace
            )

        runs: dict[str, Callable[[], object]] = {"ours": self.together([ours(k, v) for k, v in layers])}
        failed: dict[str, str] = {}
        makers: dict[str, Callable[[], list[Callable[[], Tensor]]]] = {
            "FlashInfer": lambda: flashinfer_calls(q, layers, table, s.context),
            "SDPA, dense cache": lambda: sdpa_calls(q, s.groups, s.context, num_layers),
        }
        for name, make in makers.items():
            try:
                runs[name] = self.together(make())
            except Exception as error:  # the peer is not here, or does not run here
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        times = {
            k: per_call(t, num_layers)
            for k, t in interleaved(runs, device=self.device, rounds=self.rounds).items()
        }
        share = each / times["ours"].median / self.ceilings.copy_bw
        flops = 4 * rows * s.context * s.heads * s.width
        common: dict[str, Any] = {"bytes": each, "flops": flops} | self.common()
        name, case = "decode attention", f"{rows} rows, {s.context} tokens, pages of {PAGE}"
        yield Record.of(
            name,
            case,
            times["ours"],
            goal="G6" if rows >= 32 else None,
            peer_name="copy",
            ratio=share,
            **common,
        )
        for peer in makers:
            goal = "G5" if peer == "FlashInfer" else None
            invalid = f"the peer failed: {failed[peer]}" if peer in failed else None
            yield Record.of(
                name,
                case,
                times["ours"],
                goal=goal,
                peer=times.get(peer),
                peer_name=peer,
                invalid=invalid,
                **common,
            )

    def head(self, rows: int) -> Record:
        """The whole end of a step, drawing by top-k and top-p, over the bare product of the head."""
        hidden, vocabulary = self.shape.hidden, self.shape.vocabulary
        x, w = self.normal(rows, hidden), self.normal(vocabulary, hidden) * hidden**-0.5
        ours = self.stepped(x, w) if self.on_gpu else _drawn(x, w)
        runs = {"ours": self.together([ours]), "bare": self.together([lambda: F.linear(x, w)])}
        times = interleaved(runs, device=self.device, rounds=self.rounds)
        return Record.of(
            "head and sampling", f"{rows} rows, all ids", times["ours"], goal="G8", peer=times["bare"], peer_name="bare product",
            ratio=times["ours"].median / times["bare"].median, bytes=w.numel() * 2, **self.common(),
        )  # fmt: skip

    def stepped(self, x: Tensor, w: Tensor) -> Callable[[], object]:
        """A step's end with the rows' state and draws on the device."""
        rows, vocabulary = len(x), len(w)
        made, programs = Rows.allocate(rows, 1, self.device), Programs.join([], self.device)
        request = request_columns(vocabulary=vocabulary, ignore_eos=1, top_k=TOP_K)
        for row in range(rows):
            made.begin(row, request, temperature=TEMPERATURE, top_p=TOP_P, seed=row)
        offers = Offers.allocate(rows, vocabulary, SLOTS, x.device)

        def run() -> None:
            prepare(made, programs)
            head_step(x, w, made, programs, offers)

        return run

    def together(self, calls: list[Callable[[], Any]]) -> Callable[[], object]:
        """All calls as one: a CUDA graph on a GPU."""
        return graphed(calls) if self.on_gpu else lambda: [call() for call in calls]

    @property
    def dtype(self) -> torch.dtype:
        """Of attention and the head."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def common(self) -> dict[str, Any]:
        return {
            "device": device_name(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "details": self.ceilings.details,
        } | self.state()

    def state(self) -> dict[str, Any]:
        return gpu_state() if self.on_gpu else {}


def _drawn(x: Tensor, w: Tensor) -> Callable[[], object]:
    """A draw without a step's state, which is kept on a GPU alone."""
    draws = [Draw(((0, len(w)),), (), TEMPERATURE, TOP_K, TOP_P, seed=row, n=0) for row in range(len(x))]
    return lambda: head_sample(x, w, draws)


def _is_queued(run: Callable[[], object]) -> bool:
    """Whether a call only queues work on the GPU, and waits for none of it."""
    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--only", metavar="TEXT", help="ops whose name holds one of these, with commas between them"
    )
    arguments = options.parse_args(argv)
    made = Kernels(arguments.device, arguments.quick, arguments.only).records()
    report(made, arguments.json, rehearsal=arguments.device == "cpu")


if __name__ == "__main__":
    main()
