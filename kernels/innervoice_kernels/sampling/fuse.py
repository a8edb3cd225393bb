"""Several contexts' logits to one row, with p_k = softmax(z_k) of context k and context 0 the true one

first:      z_0
pragmatic:  log p_0 + alpha * log L0(0 | t),  L0(k | t) = p_k(t)^beta prior_k / sum_j p_j(t)^beta prior_j
guidance:   log p_1 + alpha * (log p_0 - log p_1)
contrast:   (1 + beta) log p_0 - beta log p_1  where p_0(t) >= alpha max p_0, else log p_0 less 10000

logits: [R, V], the rows of G groups one behind the other   ->   rows: [G, V], stats: [R, 2], float32

Sources: Kim et al. 2021 (arXiv 2109.08828, rational speech acts for empathetic replies), Sanchez et al. 2023 (arXiv
2306.17806, classifier-free guidance), O'Brien and Lewis 2023 (arXiv 2309.09117, contrastive decoding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from innervoice_kernels import _C
from innervoice_kernels.backend import NATIVE, TRITON, choose
from innervoice_kernels.jit import Block, Num, Ptr, cdiv, constexpr, jit, launch, next_power, tl
from innervoice_kernels.native import floats, team

FusionKind = Literal["first", "pragmatic", "guidance", "contrast"]
KINDS: tuple[FusionKind, ...] = ("first", "pragmatic", "guidance", "contrast")
_FIRST, _PRAGMATIC, _GUIDANCE, _CONTRAST = (tl.constexpr(number) for number in range(len(KINDS)))
_IMPLAUSIBLE = 1e4  # what an implausible id loses: it is drawn only where the mask leaves no other
_LOSS = tl.constexpr(_IMPLAUSIBLE)


@dataclass(frozen=True)
class Fusing:
    """The combination of one reply's contexts, `size` rows of logits.

    log_prior: of each context, for the pragmatic kind.
    """

    kind: FusionKind
    alpha: float = 1.0
    beta: float = 1.0
    log_prior: tuple[float, ...] = ()
    size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.size or len(self.log_prior) or 2)


FIRST = Fusing("first", size=1)
"""The combination of a reply with one context."""


def fuse_ref(logits: Tensor, groups: Sequence[Fusing]) -> tuple[Tensor, Tensor]:
    """Each group's combined logits [G, V], and of each row the largest logit and ln of the sum of exponentials beside it.

    In float32 (float64 for float64 logits). A NaN of a row is one of every id of its group, but for the kind `first`.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = z.amax(-1, keepdim=True)
    stats = torch.cat([largest, (z - largest).logsumexp(-1, keepdim=True)], dim=-1)
    rows, made, begin = z.log_softmax(-1), [], 0
    for how in groups:
        made.append(z[begin] if how.kind == "first" else _combined(rows[begin : begin + how.size], how))
        begin += how.size
    return torch.stack(made) if made else z[:0], stats


def _combined(logp: Tensor, how: Fusing) -> Tensor:
    if how.kind == "pragmatic":
        return logp[0] + how.alpha * _listener(logp, how)[0]
    if how.kind == "guidance":
        return logp[1] + how.alpha * (logp[0] - logp[1])
    combined = (1 + how.beta) * logp[0] - how.beta * logp[1]
    is_plausible = logp[0] >= logp[0].max() + math.log(how.alpha)
    return torch.where(is_plausible, combined, logp[0] - _IMPLAUSIBLE)


def _listener(logp: Tensor, how: Fusing) -> Tensor:
    """log L0(k | t) [K, V]."""
    prior = torch.tensor(how.log_prior, dtype=logp.dtype, device=logp.device)[:, None]
    joint = how.beta * logp + prior
    return joint - joint.logsumexp(0)


def listener(logits: Tensor, stats: Tensor, how: Fusing, token: int) -> tuple[float, ...]:
    """log L0(k | token) of every context: the prior of the next token where the pragmatic kind updates it.

    logits [K, V] of one group, stats [K, 2]: as `fuse` gives them.
    """
    logp = logits[:, token].to(stats.dtype) - stats[:, 0] - stats[:, 1]
    return tuple(_listener(logp.double()[:, None], how)[:, 0].tolist())


@dataclass(frozen=True)
class FusedGroups:
    """Groups as kernels read them: group g has members [begin[g], begin[g] + count[g]), each a row of logits.

    The combined row goes to each member's target, a row of the result, -1: to none.
    """

    begin: Tensor  # [G] int32
    count: Tensor  # [G] int32, 0: there is none
    kind: Tensor  # [G] int32, of KINDS
    weights: Tensor  # [G, 2] float32: alpha, beta
    members: Tensor  # [M] int32
    targets: Tensor  # [M] int32
    log_prior: Tensor  # [R] float32, of each row of logits

    @classmethod
    def of(cls, groups: Sequence[Fusing], device: torch.device) -> FusedGroups:
        """Groups whose rows lie one behind the other, each with a row of the result."""
        sizes = [how.size for how in groups]
        begins = [0, *accumulate(sizes)]

        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        targets = [number if k == 0 else -1 for number, size in enumerate(sizes) for k in range(size)]
        weights = [(how.alpha, how.beta) for how in groups]
        return cls(
            begin=ints(begins[:-1]),
            count=ints(sizes),
            kind=ints([KINDS.index(how.kind) for how in groups]),
            weights=torch.tensor(weights, dtype=torch.float32, device=device).reshape(-1, 2),
            members=ints(range(begins[-1])),
            targets=ints(targets),
            log_prior=torch.tensor(_log_priors(groups), dtype=torch.float32, device=device),
        )

    @classmethod
    def allocate(cls, num_rows: int, device: torch.device) -> FusedGroups:
        """Groups that are numbered by their first members' rows: each row is one by itself."""
        rows = torch.arange(num_rows, dtype=torch.int32, device=device)
        return cls(
            begin=rows,
            count=torch.ones_like(rows),
            kind=torch.zeros_like(rows),
            weights=torch.zeros(num_rows, 2, dtype=torch.float32, device=device),
            members=rows.clone(),
            targets=rows.clone(),
            log_prior=torch.zeros(num_rows, dtype=torch.float32, device=device),
        )

    def first(self, number: int) -> FusedGroups:
        """The first groups, in the same memory."""
        begin, count, kind, weights = (x[:number] for x in (self.begin, self.count, self.kind, self.weights))
        return FusedGroups(begin, count, kind, weights, self.members, self.targets, self.log_prior)


def _log_priors(groups: Sequence[Fusing]) -> list[float]:
    return [prior for how in groups for prior in (how.log_prior or (0.0,) * how.size)]


def fuse_native(logits: Tensor, groups: Sequence[Fusing], isa: str | None = None) -> tuple[Tensor, Tensor]:
    """Native code for a CPU; see `fuse_ref`."""
    weights = [(how.alpha, how.beta, math.log(how.alpha) if how.alpha > 0 else 0.0) for how in groups]
    out = torch.empty(len(groups), logits.shape[1], dtype=torch.float32, device="cpu")
    stats = torch.empty(len(logits), 2, dtype=torch.float32, device="cpu")

    def numbers(values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cpu")

    _C.fuse(
        team(),
        floats(logits),
        numbers([0, *accumulate(how.size for how in groups)], torch.int64),
        numbers([KINDS.index(how.kind) for how in groups], torch.int64),
        numbers(weights, torch.float32).reshape(-1, 3),
        numbers(_log_priors(groups), torch.float32),
        out,
        stats,
        isa,
    )
    return out, stats


_BLOCK = 1024  # ids a program


@jit
def _stats_kernel(logits: Ptr, stats: Ptr, V: Num, row_stride: Num, BLOCK: constexpr) -> None:
    """One row a program: each lane keeps its largest logit and the sum beside it."""
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    lane = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    broken = tl.zeros([BLOCK], tl.int32)
    for first in range(0, V, BLOCK):
        z = tl.load(logits + first + lane, mask=first + lane < V, other=float("-inf")).to(tl.float32)
        broken |= (z != z).to(tl.int32)
        now = tl.where(z > most, z, most)
        shift = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(most - shift) + tl.exp(z - shift)
        most = now
    largest = tl.max(most, axis=0)
    summed = tl.log(tl.sum(total * tl.exp(most - largest), axis=0))
    is_broken = (tl.max(broken, axis=0) > 0) | (largest == float("inf"))
    tl.store(stats + row * 2, tl.where(is_broken, float("nan"), largest))
    tl.store(stats + row * 2 + 1, tl.where(is_broken, float("nan"), summed))


@jit
def _log_softmax(logits: Ptr, stats: Ptr, row: Num, row_stride: Num, ids: Block, inside: Block) -> Block:
    """Log p of a row's ids."""
    z = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    return z - tl.load(stats + row * 2) - tl.load(stats + row * 2 + 1)


@jit
def _fuse_kernel(
    logits: Ptr, stats: Ptr, begin: Ptr, count: Ptr, kind: Ptr, weights: Ptr, members: Ptr, targets: Ptr, log_prior: Ptr,
    out: Ptr, V: Num, row_stride: Num, out_stride: Num, BLOCK: constexpr,
) -> None:  # fmt: skip
    """BLOCK ids of one group a program."""
    group = tl.program_id(1)
    num, how = tl.load(count + group), tl.load(kind + group)
    alpha, beta = tl.load(weights + group * 2), tl.load(weights + group * 2 + 1)
    members += tl.load(begin + group)
    targets += tl.load(begin + group)
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (ids < V) & (num > 0)
    first = tl.load(members, mask=num > 0, other=0)
    made = tl.load(logits + first.to(tl.int64) * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    if how != _FIRST:
        logp = _log_softmax(logits, stats, first, row_stride, ids, inside)
        if how == _PRAGMATIC:
            joint = beta * logp + tl.load(log_prior + first)
            most, total = joint, tl.full([BLOCK], 1.0, tl.float32)
            for k in range(1, num):
                row = tl.load(members + k)
                other = _log_softmax(logits, stats, row, row_stride, ids, inside)
                other = beta * other + tl.load(log_prior + row)
                now = tl.where(other > most, other, most)
                total = total * tl.exp(most - now) + tl.exp(other - now)
                most = now
            made = logp + alpha * (joint - most - tl.log(total))
        else:
            other = _log_softmax(logits, stats, tl.load(members + 1), row_stride, ids, inside)
            if how == _GUIDANCE:
                made = other + alpha * (logp - other)
            else:
                least = tl.log(alpha) - tl.load(stats + first * 2 + 1)
                made = tl.where(logp >= least, (1 + beta) * logp - beta * other, logp - _LOSS)
    for k in range(num):
        target = tl.load(targets + k)
        tl.store(out + target.to(tl.int64) * out_stride + ids, made, mask=inside & (target >= 0))


@jit
def _listener_kernel(
    logits: Ptr, stats: Ptr, begin: Ptr, count: Ptr, kind: Ptr, weights: Ptr, members: Ptr, log_prior: Ptr, tokens: Ptr,
    forced: Ptr, row_stride: Num, token_stride: Num, LANES: constexpr,
) -> None:  # fmt: skip
    """One group a program, a member a lane."""
    group = tl.program_id(0)
    lane = tl.arange(0, LANES)
    token = tl.load(tokens + group * token_stride)
    hears = (token >= 0) & (tl.load(forced + group * token_stride) == 0)
    hears &= (tl.load(count + group) > 0) & (tl.load(kind + group) == _PRAGMATIC)
    is_member = hears & (lane < tl.load(count + group))
    row = tl.load(members + tl.load(begin + group) + lane, mask=is_member, other=0)
    place = logits + row.to(tl.int64) * row_stride + token
    logp = tl.load(place, mask=is_member, other=0.0).to(tl.float32)
    logp -= tl.load(stats + row * 2, mask=is_member, other=0.0)
    logp -= tl.load(stats + row * 2 + 1, mask=is_member, other=0.0)
    prior = tl.load(log_prior + row, mask=is_member, other=0.0)
    joint = tl.where(is_member, tl.load(weights + group * 2 + 1) * logp + prior, float("-inf"))
    most = tl.where(hears, tl.max(joint, axis=0), 0.0)
    total = tl.sum(tl.where(is_member, tl.exp(joint - most), 0.0), axis=0)
    belief = joint - most - tl.log(tl.where(hears, total, 1.0))
    tl.store(log_prior + row, belief, mask=is_member)


def fuse_into(logits: Tensor, groups: FusedGroups, stats: Tensor, out: Tensor) -> None:
    """Fill the targets' rows of out [*, V] from logits [R, V], and stats [R, 2], in two launches."""
    num_rows, vocabulary = logits.shape
    launch(
        _stats_kernel, (num_rows,), logits, stats, vocabulary, logits.stride(0), BLOCK=4 * _BLOCK, num_warps=8,
    )  # fmt: skip
    launch(
        _fuse_kernel, (cdiv(vocabulary, _BLOCK), len(groups.begin)), logits, stats, groups.begin, groups.count, groups.kind,
        groups.weights, groups.members, groups.targets, groups.log_prior, out, vocabulary, logits.stride(0), out.stride(0),
        BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def listen(
    logits: Tensor, groups: FusedGroups, stats: Tensor, tokens: Tensor, forced: Tensor, most: int
) -> None:
    """Make what listeners believe after the drawn tokens [G] the groups' log_prior; see `listener`.

    A group with token -1, or where forced [G] is not 0, stays as it is. most: members that a group may have.
    """
    launch(
        _listener_kernel, (len(groups.begin),), logits, stats, groups.begin, groups.count, groups.kind, groups.weights,
        groups.members, groups.log_prior, tokens, forced, logits.stride(0), tokens.stride(0), LANES=next_power(most),
        num_warps=1,
    )  # fmt: skip


def _fuse_triton(logits: Tensor, groups: Sequence[Fusing]) -> tuple[Tensor, Tensor]:
    logits = logits if logits.stride(-1) == 1 or logits.shape[1] == 1 else logits.contiguous()
    device = logits.device
    out = torch.empty(len(groups), logits.shape[1], dtype=torch.float32, device=device)
    stats = torch.empty(len(logits), 2, dtype=torch.float32, device=device)
    fuse_into(logits, FusedGroups.of(groups, device), stats, out)
    return out, stats


def fuse(logits: Tensor, groups: Sequence[Fusing]) -> tuple[Tensor, Tensor]:
    """The public op; see `fuse_ref`. Raises ValueError where the groups' sizes do not add up to the rows."""
    if sum(how.size for how in groups) != len(logits):
        raise ValueError(
            f"fuse: {len(logits)} rows of logits for groups of {[how.size for how in groups]}, expected as many"
        )
    chosen = choose("fuse", logits, has_native=True)
    if chosen == NATIVE and logits.dtype == torch.float64:
        return fuse_ref(logits, groups)
    return {TRITON: _fuse_triton, NATIVE: fuse_native}.get(chosen, fuse_ref)(logits, groups)
