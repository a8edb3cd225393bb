"""The exact cut of top-k and top-p: a search on the bits of float32, over the tiles of ids that can matter.

Scores s = z / T are ordered as integers are when the bits below the sign of negative ones are turned. top-k
keeps s >= t for the largest t that k ids reach; top-p, of these, the largest t that a mass of P reaches, and
of the ids with s = t the first in order until P is reached. Both are the largest t in an interval at which a
count, or a mass, of ids at or above it suffices, which never grows with t: WIDTH thresholds are tried at
once, eight rounds at most. The mass is added up in float32, as the reference does.
"""

from __future__ import annotations

from innervoice_kernels.jit import Block, Num, Ptr, constexpr, jit, tl
from innervoice_kernels.sampling.cursor_columns import MaskColumn
from innervoice_kernels.sampling.philox import gumbel

# Parts of a mask: ranges up to SINGLE, single ids up to TOP_K, the place of a set.
SINGLE, TOP_K, SET, MASK_WIDTH = (
    tl.constexpr(int(i)) for i in (MaskColumn.EXTRA0, MaskColumn.TOP_K, MaskColumn.SET, MaskColumn.WIDTH)
)
COUNT, MASS, TIES = (tl.constexpr(i) for i in range(3))
_WIDTH, _TILE_WIDTH = tl.constexpr(16), tl.constexpr(2)
_LOWEST, _HIGHEST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)


@jit
def allowed(ids: Block, asked: Block, mask: Ptr, sets: Ptr) -> Block:
    """Test which of the asked ids a mask has; see cursor_columns.Mask."""
    inside = (ids >= tl.load(mask)) & (ids < tl.load(mask + 1))
    for i in tl.static_range(2, SINGLE, 2):
        inside |= (ids >= tl.load(mask + i)) & (ids < tl.load(mask + i + 1))
    for i in tl.static_range(SINGLE, TOP_K):
        inside |= ids == tl.load(mask + i)
    if sets is not None:
        place = tl.load(mask + SET)
        word = tl.load(sets + place + ids // 32, mask=asked & (place >= 0), other=0)
        inside |= ((word >> (ids % 32)) & 1) != 0
    return asked & inside


@jit
def order(s: Block) -> Block:
    """Float32 as int32 of the same order; both zeros are one."""
    bits = tl.where(s == 0, 0.0, s).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _unorder(key: Block) -> Block:
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _narrowed(low: Num, high: Num, step: Num, num_enough: Num, WIDTH: constexpr) -> tuple[Block, ...]:
    """The interval after a round in which the first num_enough of WIDTH thresholds low +
    step, low + 2 step, ... sufficed.
    """
    new_low = tl.minimum(low + step * num_enough, high)
    return new_low, tl.where(
        num_enough < WIDTH, tl.maximum(tl.minimum(low + step * (num_enough + 1), high) - 1, new_low), high
    )


@jit
def _candidates(
    first: Num,
    logits: Ptr,
    hot: Ptr,
    count: Num,
    mask: Ptr,
    sets: Ptr,
    temperature: Num,
    TILE: constexpr,
    CHUNK: constexpr,
) -> tuple[Block, ...]:
    """Ids of a stretch of the hot tiles, whether they are allowed, and their scores."""
    place = first + tl.arange(0, CHUNK)
    inside = place < count * TILE
    ids = tl.load(hot + place // TILE, mask=inside, other=0) * TILE + place % TILE
    ok = allowed(ids, inside, mask, sets)
    z = tl.load(logits + ids, mask=ok, other=float("-inf")).to(tl.float32)
    return ids, ok, tl.div_rn(z, tl.zeros_like(z) + temperature)


@jit
def _reached(
    thresholds: Block, logits: Ptr, hot: Ptr, count: Num, mask: Ptr, sets: Ptr, temperature: Num, best: Num, cut: Num,
    MODE: constexpr, TILE: constexpr, CHUNK: constexpr,
) -> Block:  # fmt: skip
    """Number, or mass, of candidates at or above each threshold; MODE TIES: of
    those at the cut, by their ids.
    """
    total = tl.zeros([_WIDTH], tl.float32)
    for first in range(0, count * TILE, CHUNK):
        ids, ok, s = _candidates(first, logits, hot, count, mask, sets, temperature, TILE, CHUNK)
        key, weight = order(s), ok.to(tl.float32)
        if MODE == MASS:
            weight *= tl.exp(s - best)
        if MODE == TIES:
            key = tl.where(key == cut, ids, -1)
        total += tl.sum(tl.where(key[:, None] >= thresholds[None, :], weight[:, None], 0.0), axis=0)
    return total


@jit
def _largest(
    low: Num, high: Num, target: Num, logits: Ptr, hot: Ptr, count: Num, mask: Ptr, sets: Ptr, temperature: Num,
    best: Num, cut: Num, MODE: constexpr, TILE: constexpr, CHUNK: constexpr,
) -> Block:  # fmt: skip
    """The largest of low to high that reaches the target, low if none above it does. All int64."""
    while low < high:
        step = (high - low + _WIDTH - 1) // _WIDTH
        thresholds = tl.minimum(low + step * (tl.arange(0, _WIDTH) + 1), high).to(tl.int32)
        reached = _reached(
            thresholds, logits, hot, count, mask, sets, temperature, best, cut, MODE, TILE, CHUNK
        )
        low, high = _narrowed(low, high, step, tl.sum((reached >= target).to(tl.int64)), _WIDTH)
    return low


@jit
def _tile_floor(key: Block, present: Block, high: Num, k: Num) -> Block:
    """The k-th largest of the tiles' best scores, a lower bound of the k-th largest score; the
    lowest key if tiles are fewer.
    """
    low = tl.full([], _LOWEST, tl.int64)
    if tl.sum(present.to(tl.int32)) >= k:
        low = tl.min(tl.where(present, key, _HIGHEST)).to(tl.int64)
    else:
        high = low
    while low < high:
        step = (high - low + _TILE_WIDTH - 1) // _TILE_WIDTH
        thresholds = tl.minimum(low + step * (tl.arange(0, _TILE_WIDTH) + 1), high).to(tl.int32)
        reached = tl.sum((present[:, None] & (key[:, None] >= thresholds[None, :])).to(tl.int32), axis=0)
        low, high = _narrowed(low, high, step, tl.sum((reached >= k).to(tl.int64)), _TILE_WIDTH)
    return low


@jit
def _top_p(
    cut: Num, high: Num, top_p: Num, logits: Ptr, hot: Ptr, count: Num, mask: Ptr, sets: Ptr, temperature: Num,
    best: Num, V: Num, TILE: constexpr, CHUNK: constexpr,
) -> tuple[Block, ...]:  # fmt: skip
    """Of candidates from cut on: where top_p of their mass is reached, and the last id that is kept there."""
    lane = tl.arange(0, _WIDTH)
    thresholds = tl.zeros([_WIDTH], tl.int32) + cut.to(tl.int32)
    mass = _reached(thresholds, logits, hot, count, mask, sets, temperature, best, 0, MASS, TILE, CHUNK)
    target = tl.max(mass) * top_p
    cut = _largest(cut, high, target, logits, hot, count, mask, sets, temperature, best, 0, MASS, TILE, CHUNK)
    at = cut.to(tl.int32)
    thresholds = tl.where(lane == 0, at, at + 1)
    mass = _reached(thresholds, logits, hot, count, mask, sets, temperature, best, 0, MASS, TILE, CHUNK)
    number = _reached(thresholds, logits, hot, count, mask, sets, temperature, best, 0, COUNT, TILE, CHUNK)
    missing = target - tl.sum(tl.where(lane == 1, mass, 0.0))
    ties = tl.max(number) - tl.sum(tl.where(lane == 1, number, 0.0))
    weight = tl.exp(_unorder(at) - best)
    kept = tl.where(missing < weight * ties, tl.maximum(tl.ceil(missing / weight), 1.0), ties)
    last = tl.cast(V, tl.int64)
    if kept < ties:
        first = tl.zeros([], tl.int64)
        last = _largest(
            first,
            last,
            ties - kept + 1,
            logits,
            hot,
            count,
            mask,
            sets,
            temperature,
            best,
            at,
            TIES,
            TILE,
            CHUNK,
        )
    return cut, last


@jit
def draw_filtered(
    top: Block, best_z: Num, logits: Ptr, hot: Ptr, mask: Ptr, sets: Ptr, temperature: Num, top_p: Num, top_k: Num,
    key: Ptr, V: Num, TILE: constexpr, TILES: constexpr, CHUNK: constexpr,
) -> Block:  # fmt: skip
    """The id with the largest score plus noise of those that top-k and top-p keep.

    top [TILES]: largest logit of each tile.
    """
    tile = tl.arange(0, TILES)
    best = tl.div_rn(best_z, temperature)
    high = order(best).to(tl.int64)
    tile_key, present = order(tl.div_rn(top, tl.zeros_like(top) + temperature)), top > float("-inf")
    cut = tl.full([], _LOWEST, tl.int64)
    if top_k > 0:
        cut = _tile_floor(tile_key, present, high, top_k)
    is_hot = present & (tile_key >= cut)
    tl.store(hot + tl.cumsum(is_hot.to(tl.int32)) - 1, tile, mask=is_hot)
    count = tl.sum(is_hot.to(tl.int32))
    tl.debug_barrier()  # the list of hot tiles stands before it is read
    if top_k > 0:
        cut = _largest(
            cut,
            high,
            top_k.to(tl.float32),
            logits,
            hot,
            count,
            mask,
            sets,
            temperature,
            best,
            0,
            COUNT,
            TILE,
            CHUNK,
        )
    last = tl.cast(V, tl.int64)
    if top_p < 1:
        cut, last = _top_p(
            cut, high, top_p, logits, hot, count, mask, sets, temperature, best, V, TILE, CHUNK
        )
    seed = tl.load(key)
    n = tl.load(key + 1)
    d = tl.load(key + 2)
    largest, token = tl.full([], float("-inf"), tl.float32), tl.full([], _HIGHEST, tl.int32)
    for first in range(0, count * TILE, CHUNK):
        ids, ok, s = _candidates(first, logits, hot, count, mask, sets, temperature, TILE, CHUNK)
        own = order(s)
        kept = ok & ((own > cut) | ((own == cut) & (ids <= last)))
        score = tl.where(kept, s + gumbel(seed, n, d, ids), float("-inf"))
        here = tl.max(score)
        token = tl.where(here > largest, tl.min(tl.where(kept & (score == here), ids, _HIGHEST)), token)
        largest = tl.maximum(largest, here)
    return token
