"""Every Triton kernel by the error rule, on the cases of its op, interpreted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interpreted import need_interpreter

need_interpreter()

from innervoice_kernels.backend import use  # noqa: E402
from innervoice_kernels.sampling.fuse import (  # noqa: E402
    FusedGroups,
    Fusing,
    fuse_into,
    fuse_ref,
    listen,
    listener,
)
from innervoice_kernels.speech_codec import frame_conv  # noqa: E402
from innervoice_kernels.testing import OPS, Case, Op, check  # noqa: E402

NAMES = (
    "rms_norm", "add_rms_norm", "silu_mul", "rotary", "store_kv", "qkv_rope_store", "linear", "gated_linear", "paged_attention",
    "step_attention",
    "gumbel_noise", "sample", "fuse", "head_sample", "scaled_linear", "int4_linear",
    "route", "group_pairs", "expert_gate_up", "expert_down", "routed_ffn",
    "store_kv_fp8", "group_norm_mish", "snake", "stream_residual", "nearest_code",
    "stream_source", "normal_grid", "stream_stft", "istft", "stream_istft", "log_frames", "relative_attention", "flow_block",
    "frame_conv", "stream_conv", "whole_conv",
)  # fmt: skip
# Seconds each in the interpreter: in CI the first do not run, the second in one type.
LONGEST = {
    ("sample", "many rows"), ("nearest_code", "crowded"), ("stream_residual", "narrow"), ("stream_residual", "model"),
    ("stream_residual", "pieces"), ("head_sample", "17 rows"), ("rotary", "model"), ("qkv_rope_store", "model"),
    ("qkv_rope_store", "primes"), ("stream_conv", "pieces"), ("stream_conv", "few results"), ("stream_conv", "down"),
}  # fmt: skip
LONG = {
    ("qkv_rope_store", "norms, pairs"), ("stream_residual", "primes"), ("paged_attention", "model"), ("paged_attention", "long"),
    ("flow_block", "tiny"), ("flow_block", "wide"), ("relative_attention", "wide"), ("istft", "long"),
    ("int4_linear", "split, ragged"), ("scaled_linear", "fp8, split"),
}  # fmt: skip


def short(op: Op, number: int, case: Case) -> tuple[torch.dtype, ...]:
    """The types that a case is tried in by CI: an op's first case in two, the others in one or the other by turns."""
    if (op.name, case.name) in LONGEST:
        return ()
    if (op.name, case.name) in LONG:
        return op.dtypes[-2:-1] or op.dtypes
    two = op.dtypes[:2]
    return two if number == 0 else (two[number % len(two)],)


def cases(at_length: bool) -> list[object]:
    return [
        pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{dtype}")
        for op in (OPS[name] for name in NAMES)
        for number, case in enumerate(op.cases)
        for dtype in op.dtypes
        if (dtype in short(op, number, case)) != at_length
    ]


@pytest.mark.parametrize(("op", "case", "dtype"), cases(at_length=False))
def test_kernel_obeys_the_error_rule(op: Op, case: Case, dtype: torch.dtype) -> None:
    with use("triton"):
        check(op, case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "case", "dtype"), cases(at_length=True))
def test_kernel_obeys_the_error_rule_at_length(op: Op, case: Case, dtype: torch.dtype) -> None:
    with use("triton"):
        check(op, case, dtype)


def test_a_listener_hears_drawn_tokens_alone() -> None:
    """Groups whose members lie anywhere: a drawn token, a forced one, none, and kinds without a listener."""
    priors = [(-1.0, -2.0, -0.5), (-0.7, -0.7)]
    hows = [
        Fusing("pragmatic", 2.0, 0.8, priors[0]),
        Fusing("guidance", 2.0),
        Fusing("pragmatic", 6.0, 0.9, priors[1]),
    ]
    logits, members = 3 * torch.randn(9, 53), [4, 0, 7, 1, 2, 8, 3]
    groups = FusedGroups.of(hows, torch.device("cpu"))
    log_prior = torch.full((9,), -9.0)
    log_prior[[4, 0, 7]], log_prior[[8, 3]] = torch.tensor(priors[0]), torch.tensor(priors[1])
    groups = replace(groups, members=torch.tensor(members, dtype=torch.int32), log_prior=log_prior)
    groups = replace(groups, targets=groups.members)
    stats, out = torch.empty(9, 2), torch.full((9, 53), 5.0)
    fuse_into(logits, groups, stats, out)
    rows, expected_stats = fuse_ref(logits[members], hows)
    torch.testing.assert_close(stats[members], expected_stats)
    for how, row, begin in zip(hows, rows, (0, 3, 5), strict=True):
        for member in members[begin : begin + how.size]:
            torch.testing.assert_close(out[member], row)
    assert (out[[5, 6]] == 5).all(), "rows of no group"

    for tokens, forced in (([50, 3, -1], [0, 0, 0]), ([50, 3, 7], [1, 0, 0]), ([1, 2, 52], [0, 0, 0])):
        before = groups.log_prior.clone()
        columns = torch.tensor([tokens, forced], dtype=torch.int32).t().contiguous()
        listen(logits, groups, stats, columns[:, 0], columns[:, 1], 3)
        for how, token, is_forced, begin in zip(hows, tokens, forced, (0, 3, 5), strict=True):
            place = members[begin : begin + how.size]
            expected = before[place]
            if how.kind == "pragmatic" and token >= 0 and not is_forced:
                how = replace(how, log_prior=tuple(before[place].tolist()))
                expected = torch.tensor(listener(logits[place], stats[place], how, token))
            torch.testing.assert_close(groups.log_prior[place], expected)


def test_without_lengths_all_frames_of_a_convolution_count() -> None:
    x, weight, bias = torch.randn(2, 7, 5), torch.randn(6, 5, 3), torch.randn(6)
    weights = frame_conv.FrameConvWeights(weight, bias, 1, 2)
    with use("triton"):
        made = frame_conv.frame_conv(x, None, weights)
    torch.testing.assert_close(made, frame_conv.frame_conv_ref(x, None, weights), rtol=1e-5, atol=1e-5)


def test_a_stage_of_the_flow_calls_no_convolution_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU cuDNN would round float32 to TF32."""
    op = OPS["flow_stage"]
    for case in op.cases[:2]:
        inputs = case.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(0))
        expected = op.ref(**inputs)
        with monkeypatch.context() as patch, use("ref", frame_conv="triton"):
            patch.setattr(torch.nn.functional, "conv1d", None)
            torch.testing.assert_close(op.fast(**inputs), expected, rtol=1e-5, atol=1e-5)
