"""Cases of sampling and its noise, and which draws are near-ties."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from innervoice_kernels.sampling import fuse, head, philox, sample
from innervoice_kernels.sampling.fuse import FIRST, Fusing
from innervoice_kernels.sampling.sample import Draw
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Op, OpOutputs, fresh, num_bytes, rows

VOCABULARY = 168960  # GLM-4-Voice's
SPEECH = (152353, 168737)
_EPS = torch.finfo(torch.float32).eps
_MASS = 1e-5  # float32's rounding of a sum of probabilities


def _sample_case(name: str, draws: tuple[Draw, ...], vocabulary: int, skip: int = 0, levels: int = 0) -> Case:
    """levels: round the logits to that many values a unit, so that some are equal. What no row may draw is
    NaN.
    """

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        drawn = 3 * rows(
            len(draws), vocabulary, dtype=torch.float32, device=device, generator=generator, skip=skip
        )
        logits = fresh(len(draws), vocabulary + skip, dtype=dtype, device=device)[:, skip:]
        for row, draw in enumerate(draws):
            ids = sample.allowed_ids(draw, logits.device)
            logits[row, ids] = (
                (drawn[row, ids] * levels).round().div(levels).to(dtype)
                if levels
                else drawn[row, ids].to(dtype)
            )
        return {"logits": logits, "draws": draws}

    return Case(name, make)


def _broken_case(name: str) -> Case:
    """Rows that cannot draw among rows that can: NaN, nothing but -inf, +inf, no allowed id."""
    draws = tuple(
        Draw(((3, 9),), (), temperature, 2, 0.9, seed=4) for temperature in (0.0, 0.7) for _ in range(4)
    )
    draws += (Draw(()), Draw((), (), 1.0))

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        logits = rows(len(draws), 11, dtype=dtype, device=device, generator=generator)
        logits[[0, 4], 5] = float("nan")
        logits[[1, 5]] = -float("inf")
        logits[[2, 6], 8] = float("inf")
        logits[[3, 7], 4:] = -float("inf")  # one id is left
        return {"logits": logits, "draws": draws}

    return Case(name, make)


def _head_case(name: str, draws: tuple[Draw, ...], vocabulary: int, width: int, skip: int = 0) -> Case:
    """Logits of a few units; whole numbers, so that their float32 sums, and so the ids, are the same in every
    order.
    """

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        numbers = torch.int64 if generator.device.type == "cpu" else torch.int8  # an eighth of the memory
        x, w = (
            torch.randint(
                -2, 3, (n, width + skip), generator=generator, dtype=numbers, device=generator.device
            )
            .to(dtype)
            .to(device)
            for n in (len(draws), vocabulary)
        )
        return {"x": x[:, skip:] / 2, "w": w[:, skip:] / 2, "draws": draws}

    return Case(name, make)


def head_near_tie(inputs: Inputs, ids: Tensor) -> Tensor:
    """Near-ties of the logits, which are exact."""
    return near_tie({"logits": inputs["x"] @ inputs["w"].T, "draws": inputs["draws"]}, ids)


def _head_traffic(inputs: Inputs, outputs: OpOutputs) -> int:
    """The weights that some row may draw by, once; the input and the results."""
    w: Tensor = inputs["w"]
    touched = torch.cat([sample.allowed_ids(draw, w.device) for draw in inputs["draws"]]).unique()
    return len(touched) * num_bytes(w[0]) + num_bytes(inputs["x"], *outputs)


def _fuse_case(name: str, groups: tuple[Fusing, ...], vocabulary: int, skip: int = 0) -> Case:
    """Logits of a few units, as a model's, around another mean in each row."""

    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        count = sum(how.size for how in groups)
        logits = 3 * rows(
            count, vocabulary, dtype=torch.float32, device=device, generator=generator, skip=skip
        )
        logits += 7 * torch.arange(count, device=device, dtype=torch.float32)[:, None] - 9
        return {"logits": logits.to(dtype), "groups": groups}

    return Case(name, make)


def _pragmatic(size: int, alpha: float = 6.0, beta: float = 0.9) -> Fusing:
    """A listener's beliefs that are not equal."""
    shares = [k + 1.0 for k in range(size)]
    return Fusing("pragmatic", alpha, beta, tuple(math.log(share / sum(shares)) for share in shares))


def _gumbel_case(
    name: str, count: int, start: int = 0, step: int = 1, seed: int = 0, n: int = 0, d: int = 0
) -> Case:
    def make(dtype: torch.dtype, device: DeviceName, generator: torch.Generator) -> Inputs:
        return {
            "seed": seed,
            "n": n,
            "d": d,
            "ids": torch.arange(start, start + count * step, device=device, dtype=torch.int64)[::step],
        }

    return Case(name, make)


def _gumbel64(seed: int, n: int, d: int, ids: Tensor) -> Tensor:
    """The noise with its logarithms in float64; the words that it is made of are exact."""
    zero = torch.zeros((), dtype=torch.int64, device=ids.device)
    word = philox.philox_ref(
        (ids, zero + n, zero + d, zero), (zero + (seed & philox.LOW), zero + (seed >> 32))
    )[0]
    return -torch.log(-torch.log(((word >> 9).double() + 0.5) * 2.0**-23))


def _kept(scaled: Tensor, draw: Draw, slack: float, mass: float) -> Tensor:
    """Which of scaled [N] top-k and top-p keep, when either limit is wider by so much."""
    inside = torch.ones_like(scaled, dtype=torch.bool)
    if 0 < draw.top_k < len(scaled):
        inside = scaled >= torch.topk(scaled, draw.top_k).values[-1] - slack
    if draw.top_p < 1:
        order = torch.argsort(scaled.masked_fill(~inside, float("-inf")), descending=True, stable=True)
        p = torch.softmax(scaled.masked_fill(~inside, float("-inf"))[order], dim=0)
        before = torch.empty_like(p).index_copy(0, order, p.cumsum(0) - p)
        inside &= before < draw.top_p + mass
        inside[order[0]] = True
    return inside


def _is_near_tie(z: Tensor, draw: Draw, token: int) -> bool:
    """A drawn token whose score, z / T + noise, is the best up to rounding, as is the place where top-k and
    top-p cut.
    """
    ids = sample.allowed_ids(draw, z.device)
    own = ids == token
    if draw.temperature == 0 or not own.any() or not z[ids].max().isfinite():
        return False
    scaled, noise = z[ids] / draw.temperature, _gumbel64(draw.seed, draw.n, draw.d, ids)
    slack = 4 * _EPS * float(scaled.abs().nan_to_num(posinf=0.0).max() + noise.abs().max())
    score = scaled + noise
    surely, perhaps = _kept(scaled, draw, 0.0, -_MASS), _kept(scaled, draw, slack, _MASS)
    return bool((own & perhaps).any() and score[own] >= score[surely].max() - slack)


def near_tie(inputs: Inputs, ids: Tensor) -> Tensor:
    """Draws at a temperature: scores closer than float32's rounding, or cut off by top-k or top-p within it.
    Greedy: none.
    """
    drawn = zip(inputs["logits"], inputs["draws"], ids.tolist(), strict=True)
    return torch.tensor(
        [_is_near_tie(z, draw, token) for z, draw, token in drawn], dtype=torch.bool, device=ids.device
    )


def _traffic(inputs: Inputs, outputs: OpOutputs) -> int:
    """The logits that may be drawn, once, and the results."""
    logits: Tensor = inputs["logits"]
    count = sum(len(sample.allowed_ids(draw, logits.device)) for draw in inputs["draws"])
    return count * logits.element_size() + num_bytes(*outputs)


def _mixed(vocabulary: int) -> tuple[Draw, ...]:
    """One row of every way to draw, over the whole vocabulary, over parts of it, over single ids."""
    whole, parts = ((0, vocabulary),), ((3, vocabulary // 2), (vocabulary // 2 + 5, vocabulary - 1))
    return (
        Draw(whole), Draw(parts, (0, 1)), Draw((), (vocabulary - 1,)), Draw(whole, (), 0.8, seed=1, n=5),
        Draw(parts, (1,), 0.2, 0, 0.8, seed=2**63 + 9, n=7), Draw(whole, (), 0.8, 50, 0.8, seed=1, n=5, d=1),
        Draw(parts, (), 1.5, 7, seed=3), Draw(((5, 6),), (), 1.0, 50, 0.5, seed=3),
        Draw(whole, (), 2.0, 1, seed=3), Draw(whole, (), 1.0, 3, 1e-9, seed=8),
        Draw(whole, (), 1.0, 2 * vocabulary, 0.999, seed=8),
    )  # fmt: skip


def _default(low: int, high: int, count: int = 1) -> tuple[Draw, ...]:
    """As the checkpoint's generation_config.json says."""
    return tuple(Draw(((low, high),), (), 0.8, 50, 0.8, seed=1000 + row, n=row) for row in range(count))


OPS = (
    Op("gumbel_noise", philox.gumbel_noise, philox.gumbel_noise_ref, (
        _gumbel_case("one", 1), _gumbel_case("primes", 131, start=7, seed=13, n=17, d=1),
        _gumbel_case("every third", 67, step=3, n=2),
        _gumbel_case("large key", 1000, start=168000, seed=2**64 - 1, n=2**32 - 1), _gumbel_case("empty", 0),
    ), real=(_gumbel_case("vocabulary", VOCABULARY),
    _gumbel_case("speech", SPEECH[1] - SPEECH[0], start=SPEECH[0])), dtypes=(torch.float32,
    ), exact=_gumbel64),
    Op("sample", sample.sample, sample.sample_ref, (
        _sample_case("one", (Draw(((0, 1),)), Draw(((0, 1),), (), 1.0, 1, 0.5)), 1),
        _sample_case("primes", _mixed(131), 131), _sample_case("wide rows", _mixed(64), 64, skip=37),
        _sample_case("equal logits", _mixed(997), 997, levels=1),
        _sample_case("many rows", _default(10, 250, count=64), 256), _broken_case("rows without a number"),
        _sample_case("empty", (), 10),
    ), real=(
        _sample_case("vocabulary, greedy", (Draw(((0, VOCABULARY),)),), VOCABULARY),
        _sample_case("vocabulary, top-k 50 and top-p", _default(0, VOCABULARY), VOCABULARY),
        _sample_case("vocabulary, top-p", (Draw(((0, VOCABULARY),), (), 0.8, 0, 0.8),), VOCABULARY),
        _sample_case("vocabulary, temperature", (Draw(((0, VOCABULARY),), (), 0.8),), VOCABULARY),
        _sample_case("speech, greedy", (Draw((SPEECH,)),), VOCABULARY),
        _sample_case("speech, top-k 50 and top-p", _default(*SPEECH), VOCABULARY),
        _sample_case("speech, top-k 50 and top-p, 16 rows", _default(*SPEECH, count=16), VOCABULARY),
    ), near_tie=near_tie, traffic=_traffic),
    Op("fuse", fuse.fuse, fuse.fuse_ref, (
        _fuse_case("one", (FIRST,), 1), _fuse_case("one id", (_pragmatic(2), Fusing("guidance", 2.0)), 1),
        _fuse_case("every kind", (_pragmatic(3), FIRST, Fusing("guidance", 1.5), Fusing("contrast", 0.1, 0.5)), 131),
        _fuse_case("wide rows", (Fusing("contrast", 1.0, 2.0), _pragmatic(5, 1.0, 1.0), FIRST), 64, skip=37),
        _fuse_case("many", (_pragmatic(17), *[FIRST] * 3, _pragmatic(2, -1.0, 0.0)), 4099), _fuse_case("empty", (), 10),
    ), real=(
        _fuse_case("vocabulary, pragmatic of 3", (_pragmatic(3),), VOCABULARY),
        _fuse_case("vocabulary, guidance", (Fusing("guidance", 1.5),), VOCABULARY),
        _fuse_case("vocabulary, 4 pragmatic of 3", (_pragmatic(3),) * 4, VOCABULARY),
    )),
    Op("head_sample", head.head_sample, head.head_sample_ref, (
        _head_case("one", (Draw(((0, 1),)),), 1, 1), _head_case("primes", _mixed(131), 131, 37),
        _head_case("narrow", (*_default(300, 320, count=3), Draw((), (63, 64, 999))), 1000, 24),
        _head_case("wide rows", _mixed(64), 64, 32, skip=16),
        _head_case("17 rows", _default(5, 60, count=17), 67, 16), _head_case("empty", (), 10, 16),
    ), real=(
        _head_case("vocabulary, greedy", (Draw(((0, VOCABULARY),)),), VOCABULARY, 4096),
        _head_case("vocabulary, top-k 50 and top-p", _default(0, VOCABULARY), VOCABULARY, 4096),
        _head_case("speech, top-k 50 and top-p", _default(*SPEECH), VOCABULARY, 4096),
    ), near_tie=head_near_tie, traffic=_head_traffic),
)  # fmt: skip
