"""The cursor's rules for a vector of rows, as kernel functions; a variable is a lane a row, a flag 0 or 1."""

from __future__ import annotations

from innervoice_kernels.jit import Block, Num, Ptr, jit, tl
from innervoice_kernels.sampling.cursor_columns import (
    UNLIMITED,
    Edge,
    Ending,
    MaskColumn,
    OutputColumn,
    ProgramColumn,
    RequestColumn,
    StateColumn,
    TokenKind,
)

(
    _FORCED, _KIND, _BUDGET, _NEXT, _CLOSE_ROW, _OFFSET, _LENGTH, _LOW0, _HIGH0, _LOW1, _HIGH1, _LOW2, _HIGH2,
    _EXTRA0, _EXTRA1, _ENDS, _ENTRY, _HEAD, _DISCARD, _SAMPLING, _EDGES, _NUM_EDGES, _MISS, _SINGLE0, _SINGLE1, _SINGLE2,
    _SINGLE3, _SET, _TABLE_WIDTH,
) = (tl.constexpr(int(i)) for i in ProgramColumn)  # fmt: skip
(
    _ROW, _COUNT, _LIMIT, _TEXT_DONE, _REFLECTION_DONE, _IS_DONE, _NUM_REFLECTIONS, _SEGMENT, _OFFERS_DONE, _FRESH, _NUM_TOKENS,
    _IN_REFLECTION, _LAST, _CAPPED, _CAP, _STATE_WIDTH,
) = (tl.constexpr(int(i)) for i in StateColumn)  # fmt: skip
(
    _R_TABLE, _R_FORCED, _R_SAMPLINGS, _R_START, _R_IS_GUIDED, _R_FLOOR, _R_REFLECT, _R_OPEN, _R_CLOSE, _R_DONE,
    _R_SPEECH_LOW, _R_SPEECH_HIGH, _R_VOCABULARY, _R_IGNORE_EOS, _R_MAX_TOKENS, _R_TOP_K, _R_TOOL_OPEN, _R_TOOL_CLOSE,
    _R_TOOL_ROW, _R_SETS, _R_EOS, _REQUEST_WIDTH,
) = (tl.constexpr(int(i)) for i in RequestColumn)  # fmt: skip
_REFLECTION, _TRANSCRIPT, _SPEECH, _OPEN, _CLOSE, _DONE, _END, _TOOL, _TOOL_MARK = (
    tl.constexpr(int(i)) for i in TokenKind
)
_RUNNING, _STOP, _LENGTH_SPENT, _REFUSED, _IDLE, _WAITING, _PAUSED, _FED = (
    tl.constexpr(int(i)) for i in Ending
)
_O_TOKEN, _O_KIND, _O_SEGMENT, _O_IS_FORCED, _O_IS_DONE, _O_DISCARDED, _OUTPUT_WIDTH = (
    tl.constexpr(int(i)) for i in OutputColumn
)
(
    _M_LOW0, _M_HIGH0, _M_LOW1, _M_HIGH1, _M_LOW2, _M_HIGH2, _M_EXTRA0, _M_EXTRA1, _M_DONE, _M_END, _M_TOP_K, _M_SET,
    _MASK_WIDTH,
) = (tl.constexpr(int(i)) for i in MaskColumn)  # fmt: skip
_NUM_ENDS = tl.constexpr(int(RequestColumn.WIDTH - RequestColumn.EOS))
_UNLIMITED = tl.constexpr(UNLIMITED)
_CLOSES, _LEAVES, _CHOOSES = (tl.constexpr(int(i)) for i in Edge)


@jit
def _budget(at: Block, mask: Block) -> Block:
    budget = tl.load(at + _BUDGET, mask=mask, other=0)
    return tl.where(budget < 0, _UNLIMITED, budget)


@jit
def _next(table: Block, row: Block, text_done: Block, reflection_done: Block, mask: Block) -> Block:
    return tl.load(table + row * _TABLE_WIDTH + _NEXT + text_done + 2 * reflection_done, mask=mask, other=0)


@jit
def _is_endless(kind: Block, text_done: Block) -> Block:
    return (kind == _SPEECH) & (text_done != 0)


@jit
def _enter(
    walking: Block, index: Block, row: Block, count: Block, limit: Block, num: Block, fresh: Block, text_done: Block,
    reflection_done: Block, table: Block, caps: Block, C: Num, state: Block, floor: Block, reflect: Block,
) -> tuple[Block, ...]:  # fmt: skip
    """Rows that are walking come to stand at the first state from index on that is not capped to nothing."""
    while tl.max(walking.to(tl.int32), axis=0) > 0:
        at = table + index * _TABLE_WIDTH
        is_entry = walking & (tl.load(at + _ENTRY, mask=walking, other=0) != 0)
        kind = tl.load(at + _KIND, mask=walking, other=0)
        body = tl.where(kind == _REFLECTION, index, tl.load(at + _NEXT, mask=walking, other=0))
        cap = tl.load(caps + num, mask=is_entry & (num < C), other=_UNLIMITED)
        is_granted = is_entry & (num == tl.load(state + _CAPPED, mask=is_entry, other=-1))
        cap = tl.minimum(
            tl.load(state + _CAP, mask=is_granted, other=0) + tl.where(is_granted, 0, cap), reflect
        )
        opened = tl.minimum(_budget(table + body * _TABLE_WIDTH, is_entry), tl.maximum(cap, floor))
        limit = tl.where(is_entry, opened, limit)
        num += is_entry.to(tl.int32)
        is_skipped = is_entry & (limit <= 0)
        stands = walking & (is_skipped == 0)
        row, count = tl.where(stands, index, row), tl.where(stands, 0, count)
        fresh = tl.where(stands & (tl.load(at + _HEAD, mask=walking, other=0) != 0), 1, fresh)
        draws = stands & (is_entry == 0) & (tl.load(at + _FORCED, mask=walking, other=0) == 0)
        draws_whole = (kind != _REFLECTION) | (tl.load(at + _MISS, mask=draws, other=0) == _CHOOSES)
        limit = tl.where(draws & draws_whole, _budget(at, walking), limit)
        is_spent = draws & (limit <= 0) & (_is_endless(kind, text_done) == 0)
        onward = tl.where(is_skipped, tl.load(at + _CLOSE_ROW, mask=walking, other=0), index)
        walking = is_skipped | is_spent
        index = tl.where(walking, _next(table, onward, text_done, reflection_done, walking), index)
    return row, count, limit, num, fresh


@jit
def _write_draw(
    slot: Block, exists: Block, draws: Block, b: Block, row: Block, text_done: Block, offers: Block, d: Num, n: Block,
    table: Block, request: Block, scale: Ptr, seed: Ptr, samplings: Ptr, mask: Ptr, mask_scale: Ptr, key: Ptr,
) -> None:  # fmt: skip
    """What a row may draw where it stands; nothing where it does not draw."""
    guided = draws & (tl.load(request + _R_IS_GUIDED, mask=exists, other=0) != 0)
    at, out = table + row * _TABLE_WIDTH, mask + slot * _MASK_WIDTH
    all_ids = tl.where(draws & (guided == 0), tl.load(request + _R_VOCABULARY, mask=exists, other=0), 0)
    tl.store(out + _M_LOW0, tl.load(at + _LOW0, mask=guided, other=0), mask=exists)
    tl.store(out + _M_HIGH0, tl.load(at + _HIGH0, mask=guided, other=0) + all_ids, mask=exists)
    tl.store(out + _M_LOW1, tl.load(at + _LOW1, mask=guided, other=0), mask=exists)
    tl.store(out + _M_HIGH1, tl.load(at + _HIGH1, mask=guided, other=0), mask=exists)
    tl.store(out + _M_LOW2, tl.load(at + _LOW2, mask=guided, other=0), mask=exists)
    tl.store(out + _M_HIGH2, tl.load(at + _HIGH2, mask=guided, other=0), mask=exists)
    ends = tl.load(at + _ENDS, mask=guided, other=0)
    is_time = guided & ((ends != 2) | (text_done != 0))
    for i in tl.static_range(2):
        tl.store(out + _M_EXTRA0 + i, tl.load(at + _EXTRA0 + i, mask=is_time, other=-1), mask=exists)
    # Behind a call the reply ends whatever the request says.
    ignores = tl.load(request + _R_IGNORE_EOS, mask=exists, other=0) != 0
    ignores &= tl.load(at + _KIND, mask=guided, other=0) != _TOOL_MARK
    is_single = guided & (ends == 3)
    offered = is_time & (ends != 0) & (is_single == 0) & (ignores == 0)
    for i in tl.static_range(_NUM_ENDS):
        ending = tl.load(request + _R_EOS + i, mask=offered, other=-1)
        single = tl.load(at + _SINGLE0 + i, mask=is_single, other=-1)
        tl.store(out + _M_END + i, tl.where(is_single, single, ending), mask=exists)
    done = tl.where(guided & (offers != 0), tl.load(request + _R_DONE, mask=exists, other=0), -1)
    tl.store(out + _M_DONE, done, mask=exists)
    place = tl.load(at + _SET, mask=guided, other=-1)
    place += tl.where(place < 0, 0, tl.load(request + _R_SETS, mask=exists, other=0))
    tl.store(out + _M_SET, place, mask=exists)
    own = tl.load(at + _SAMPLING, mask=guided, other=-1)
    samplings += (tl.load(request + _R_SAMPLINGS, mask=exists, other=0) + own) * 3
    for i in tl.static_range(2):
        theirs = tl.load(scale + 2 * b + i, mask=exists, other=0.0)
        value = tl.load(samplings + i, mask=own >= 0, other=float("nan"))
        tl.store(mask_scale + slot * 2 + i, tl.where(value == value, value, theirs), mask=exists)
    top_k = tl.load(samplings + 2, mask=own >= 0, other=float("nan"))
    is_own = top_k == top_k
    theirs = tl.load(request + _R_TOP_K, mask=exists, other=0)
    tl.store(out + _M_TOP_K, tl.where(is_own, tl.where(is_own, top_k, 0.0).to(tl.int32), theirs), mask=exists)
    tl.store(key + slot * 3, tl.load(seed + b, mask=exists, other=0), mask=exists)
    tl.store(key + slot * 3 + 1, n.to(tl.int64), mask=exists)
    tl.store(key + slot * 3 + 2, tl.zeros_like(n).to(tl.int64) + d, mask=exists)


@jit
def prepare_rows(
    b: Block, state: Ptr, request: Ptr, scale: Ptr, seed: Ptr, caps: Ptr, lower: Ptr, coming: Ptr, successor: Ptr, mask: Ptr,
    mask_scale: Ptr, key: Ptr, table: Ptr, samplings: Ptr, B: Num, C: Num,
) -> None:  # fmt: skip
    """Begin new rows b, apply granted caps, and fill the masks of the first draw and of the second."""
    exists = b < B
    s, request = state + b * _STATE_WIDTH, request + b * _REQUEST_WIDTH
    table += tl.load(request + _R_TABLE, mask=exists, other=0) * _TABLE_WIDTH
    caps += b * C
    floor = tl.load(request + _R_FLOOR, mask=exists, other=0)
    reflect = tl.load(request + _R_REFLECT, mask=exists, other=0)
    alive = exists & (tl.load(s + _IS_DONE, mask=exists, other=1) == 0)
    guided = alive & (tl.load(request + _R_IS_GUIDED, mask=exists, other=0) != 0)
    row, count = tl.load(s + _ROW, mask=guided, other=0), tl.load(s + _COUNT, mask=guided, other=0)
    limit, num = (
        tl.load(s + _LIMIT, mask=guided, other=0),
        tl.load(s + _NUM_REFLECTIONS, mask=guided, other=0),
    )
    fresh, offers = tl.load(s + _FRESH, mask=guided, other=0), tl.load(s + _OFFERS_DONE, mask=guided, other=0)
    text_done = tl.load(s + _TEXT_DONE, mask=guided, other=0)
    reflection_done = tl.load(s + _REFLECTION_DONE, mask=guided, other=0)
    n = tl.load(s + _NUM_TOKENS, mask=exists, other=0)

    # A row that has not begun enters the first state of its program.
    begins = row < 0
    start = tl.load(request + _R_START, mask=begins, other=0)
    row, count, limit, num, fresh = _enter(
        begins, start, row, count, limit, num, fresh, text_done, reflection_done,
        table, caps, C, s, floor, reflect,
    )  # fmt: skip
    # Caps from the host: for the next reflection where none is open, else for the open one, which may end by
    # it.
    kind = tl.load(table + row * _TABLE_WIDTH + _KIND, mask=guided, other=_END)
    is_forced = tl.load(table + row * _TABLE_WIDTH + _FORCED, mask=guided, other=1) != 0
    # Forced text may count as reflection, but is no segment that a cap could close.
    chooses = tl.load(table + row * _TABLE_WIDTH + _MISS, mask=guided, other=0) == _CHOOSES
    is_open = guided & ((kind == _OPEN) | ((kind == _REFLECTION) & (is_forced == 0) & (chooses == 0)))
    cap = tl.load(coming + b, mask=guided & (is_open == 0), other=-1)
    tl.store(s + _CAPPED, num, mask=cap >= 0)
    own = tl.load(caps + num, mask=(cap >= 0) & (num < C), other=_UNLIMITED)
    tl.store(s + _CAP, tl.minimum(cap, own), mask=cap >= 0)
    cap = tl.load(lower + b, mask=is_open, other=-1)
    is_open &= cap >= 0
    limit = tl.where(is_open, tl.minimum(limit, tl.maximum(cap, floor)), limit)
    is_spent = is_open & (kind == _REFLECTION) & (count >= limit)
    onward = _next(table, row, text_done, reflection_done, is_spent)
    row, count, limit, num, fresh = _enter(
        is_spent, onward, row, count, limit, num, fresh, text_done, reflection_done,
        table, caps, C, s, floor, reflect,
    )  # fmt: skip
    # Orders are taken once; the state is written back.
    tl.store(lower + b, -1, mask=exists)
    tl.store(coming + b, -1, mask=exists)
    tl.store(s + _ROW, row, mask=guided)
    tl.store(s + _COUNT, count, mask=guided)
    tl.store(s + _LIMIT, limit, mask=guided)
    tl.store(s + _NUM_REFLECTIONS, num, mask=guided)
    tl.store(s + _FRESH, fresh, mask=guided)

    # The first draw of the row.
    draws = alive & (tl.load(table + row * _TABLE_WIDTH + _FORCED, mask=guided, other=0) == 0)
    _write_draw(
        2 * b, exists, draws, b, row, text_done, offers, 0, n, table, request, scale, seed, samplings, mask, mask_scale,
        key,
    )  # fmt: skip
    # As if a speech id had been drawn: the text is finished, and the row stands where the same
    # logits are drawn from again.
    discards = guided & draws & (tl.load(table + row * _TABLE_WIDTH + _DISCARD, mask=guided, other=0) != 0)
    onward = _next(table, row, tl.full(b.shape, 1, tl.int32), reflection_done, discards)
    row, count, limit, num, fresh = _enter(
        discards, onward, row, count, limit, num, fresh, tl.full(b.shape, 1, tl.int32), reflection_done,
        table, caps, C, s, floor, reflect,
    )  # fmt: skip
    s = successor + b * _STATE_WIDTH
    tl.store(s + _ROW, row, mask=discards)
    tl.store(s + _COUNT, count, mask=discards)
    tl.store(s + _LIMIT, limit, mask=discards)
    tl.store(s + _NUM_REFLECTIONS, num, mask=discards)
    tl.store(s + _FRESH, fresh, mask=discards)
    draws = discards & (tl.load(table + row * _TABLE_WIDTH + _FORCED, mask=discards, other=1) == 0)
    _write_draw(
        2 * b + 1, exists, draws, b, row, tl.full(b.shape, 1, tl.int32), offers, 1, n, table, request, scale, seed, samplings,
        mask, mask_scale, key,
    )  # fmt: skip


@jit
def _is_end(token: Block, request: Block, mask: Block, is_due: Block) -> Block:
    """Whether a token ends its reply; is_due: even where the request ignores ends."""
    ends = mask & (token < 0)
    for i in tl.static_range(_NUM_ENDS):
        ends |= mask & (token == tl.load(request + _R_EOS + i, mask=mask, other=-1))
    return ends & (is_due | (tl.load(request + _R_IGNORE_EOS, mask=mask, other=1) == 0))


@jit
def _label(
    token: Block, request: Block, is_free: Block, in_reflection: Block, last: Block
) -> tuple[Block, ...]:
    """Kind of an unguided reply's token -> kind, in_reflection, last, whether a segment begins."""
    ends = _is_end(token, request, is_free, is_free & (is_free == 0))
    is_speech = token >= tl.load(request + _R_SPEECH_LOW, mask=is_free, other=0)
    is_speech &= token < tl.load(request + _R_SPEECH_HIGH, mask=is_free, other=0)
    close = tl.load(request + _R_CLOSE, mask=is_free, other=-1)
    opens = (token == tl.load(request + _R_OPEN, mask=is_free, other=-1)) & (close >= 0)
    kind = tl.where(token == tl.load(request + _R_DONE, mask=is_free, other=-1), _DONE, _REFLECTION)
    kind = tl.where(token == close, _CLOSE, kind)
    kind = tl.where(in_reflection == 0, _TRANSCRIPT, kind)
    kind = tl.where(ends, _END, tl.where(is_speech, _SPEECH, tl.where(opens, _OPEN, kind)))
    group = tl.where((kind == _OPEN) | (kind == _CLOSE) | (kind == _DONE), _REFLECTION, kind)
    begins = (kind == _OPEN) | (group != last)
    in_reflection = tl.where(kind == _OPEN, 1, tl.where(kind == _CLOSE, 0, in_reflection))
    return kind, in_reflection, tl.where(kind == _CLOSE, -1, group), begins


@jit
def _follow_edges(token: Block, at: Block, forced: Block, takes: Block) -> tuple[Block, ...]:
    """The state that a drawn id leads to, or an Edge -> it, and whether the row's state has edges, which ascend."""
    edges = forced + tl.load(at + _EDGES, mask=takes, other=0)
    num = tl.load(at + _NUM_EDGES, mask=takes, other=0)
    low, high = tl.zeros_like(num), num
    while tl.max(high - low, axis=0) > 0:
        middle = (low + high) // 2
        is_below = (low < high) & (tl.load(edges + middle, mask=low < high, other=0) < token)
        high = tl.where(is_below, high, middle)
        low = tl.where(is_below, middle + 1, low)
    is_it = (low < num) & (tl.load(edges + low, mask=low < num, other=-1) == token)
    target = tl.load(at + _MISS, mask=takes, other=0)
    return tl.where(is_it, tl.load(edges + num + low, mask=is_it, other=0), target), num > 0


@jit
def advance_rows(
    b: Block, state: Ptr, request: Ptr, caps: Ptr, successor: Ptr, table: Ptr, forced: Ptr, drawn: Ptr, drawn_logprob: Ptr,
    output: Ptr, logprob: Ptr, B: Num, C: Num,
) -> None:  # fmt: skip
    """Emit the forced or the drawn id of rows b: drawn [B, 2] ids, the second after a discarded first."""
    exists = b < B
    s = state + b * _STATE_WIDTH
    later = successor + b * _STATE_WIDTH
    request = request + b * _REQUEST_WIDTH
    table += tl.load(request + _R_TABLE, mask=exists, other=0) * _TABLE_WIDTH
    forced += tl.load(request + _R_FORCED, mask=exists, other=0)
    caps += b * C
    floor = tl.load(request + _R_FLOOR, mask=exists, other=0)
    reflect = tl.load(request + _R_REFLECT, mask=exists, other=0)
    ending = tl.load(s + _IS_DONE, mask=exists, other=_IDLE)
    alive = exists & (ending == _RUNNING)
    guided = alive & (tl.load(request + _R_IS_GUIDED, mask=exists, other=0) != 0)
    row, offers = tl.load(s + _ROW, mask=guided, other=0), tl.load(s + _OFFERS_DONE, mask=guided, other=0)
    text_done = tl.load(s + _TEXT_DONE, mask=guided, other=0)
    reflection_done = tl.load(s + _REFLECTION_DONE, mask=guided, other=0)
    close, done = (
        tl.load(request + _R_CLOSE, mask=guided, other=-1),
        tl.load(request + _R_DONE, mask=guided, other=-1),
    )

    # After a discarded draw the row stands where `prepare` said it would.
    at, first = table + row * _TABLE_WIDTH, tl.load(drawn + 2 * b, mask=alive, other=0, cache_modifier=".cg")
    discarded = guided & (tl.load(at + _DISCARD, mask=guided, other=0) != 0)
    discarded &= (first >= tl.load(at + _LOW1, mask=guided, other=0)) & (
        first < tl.load(at + _HIGH1, mask=guided, other=0)
    )
    s_now = tl.where(discarded, later, s)
    row, count = tl.load(s_now + _ROW, mask=guided, other=0), tl.load(s_now + _COUNT, mask=guided, other=0)
    limit, num = (
        tl.load(s_now + _LIMIT, mask=guided, other=0),
        tl.load(s_now + _NUM_REFLECTIONS, mask=guided, other=0),
    )
    fresh = tl.load(s_now + _FRESH, mask=guided, other=0)
    text_done = tl.where(discarded, 1, text_done)
    slot = 2 * b + discarded.to(tl.int32)
    at = table + row * _TABLE_WIDTH
    is_forced = guided & (tl.load(at + _FORCED, mask=guided, other=0) == 1)
    emits = alive & ((guided == 0) | (tl.load(at + _FORCED, mask=guided, other=0) != 2))
    kind = tl.load(at + _KIND, mask=guided, other=_TRANSCRIPT)
    ids = forced + tl.load(at + _OFFSET, mask=is_forced, other=0) + count
    token = tl.where(
        is_forced,
        tl.load(ids, mask=is_forced, other=0),
        tl.load(drawn + slot, mask=alive, other=-1, cache_modifier=".cg"),
    )
    refused = emits & (token < 0)
    # The kind of the token: the end of a reflection, an accepted offer of done, the begin or end of a call,
    # the end of turn, or its state's.
    takes = guided & emits & (refused == 0) & (is_forced == 0)
    target, has_edges = _follow_edges(token, at, forced, takes)
    chooses = takes & (tl.load(at + _MISS, mask=takes, other=0) == _CHOOSES)
    closes = tl.where(has_edges, target == _CLOSES, token == close)
    ends_reflection = takes & (kind == _REFLECTION) & (chooses == 0) & (closes | (token == done))
    takes_offer = takes & (ends_reflection == 0) & (offers != 0) & (token == done)
    plain = takes & (ends_reflection == 0) & (takes_offer == 0)
    is_text = (kind == _REFLECTION) | (kind == _TOOL)  # in which no id opens a call or ends the reply
    opens_call = plain & (is_text == 0)
    opens_call &= token == tl.load(request + _R_TOOL_OPEN, mask=opens_call, other=-1)
    closes_call = plain & (kind == _TOOL)
    closes_call &= token == tl.load(request + _R_TOOL_CLOSE, mask=closes_call, other=-1)
    plain &= (opens_call | closes_call) == 0
    ends = _is_end(token, request, plain & (is_text == 0), kind == _TOOL_MARK)
    plain &= ends == 0
    is_done_token = (ends_reflection | takes_offer) & (token == done)
    emitted = tl.where(ends_reflection, _CLOSE, tl.where(ends, _END, kind))
    emitted = tl.where(is_done_token, _DONE, emitted)
    emitted = tl.where(opens_call | closes_call, _TOOL_MARK, emitted)
    fresh = tl.where(ends | opens_call, 1, fresh)

    # Unguided replies are only labelled.
    is_free = alive & (guided == 0) & (refused == 0)
    free_kind, in_reflection, last, begins = _label(
        token,
        request,
        is_free,
        tl.load(s + _IN_REFLECTION, mask=is_free, other=0),
        tl.load(s + _LAST, mask=is_free, other=-1),
    )
    emitted = tl.where(is_free, free_kind, emitted)
    ends |= is_free & (free_kind == _END)
    counts = (
        guided & emits & (refused == 0) & (takes_offer == 0)
    )  # an accepted offer belongs to the segment before
    segment = tl.load(s + _SEGMENT, mask=alive, other=-1) + tl.where(
        is_free, begins.to(tl.int32), tl.where(counts, fresh, 0)
    )
    fresh = tl.where(counts, 0, fresh)

    # The state behind the token: the same one, or the next where it is spent or closed.
    reflection_done = tl.where(is_done_token, 1, reflection_done)
    count += (is_forced | plain).to(tl.int32)
    is_over = is_forced & (count == tl.load(at + _LENGTH, mask=is_forced, other=0))
    moves = plain & (target >= 0)
    row, count = tl.where(moves, target, row), tl.where(moves & chooses, 0, count)
    is_over |= plain & (target == _LEAVES)
    is_over |= plain & (count >= limit) & (_is_endless(kind, text_done) == 0)
    # Close is offered a done: a drawn one at once, a forced one when it has been emitted.
    offers = tl.where(
        (ends_reflection & (is_done_token == 0)) | (is_forced & is_over & (kind == _CLOSE)), 1, 0
    )
    is_closed = ends_reflection | closes_call
    from_row = tl.where(is_closed, tl.load(at + _CLOSE_ROW, mask=is_closed, other=0), row)
    walks = is_closed | is_over | opens_call
    onward = _next(table, from_row, text_done, reflection_done, walks)
    onward = tl.where(opens_call, tl.load(request + _R_TOOL_ROW, mask=opens_call, other=0), onward)
    row, count, limit, num, fresh = _enter(
        walks, onward, row, count, limit, num, fresh, text_done, reflection_done,
        table, caps, C, s, floor, reflect,
    )  # fmt: skip

    # The end of the reply, if this was its last token.
    n = tl.load(s + _NUM_TOKENS, mask=alive, other=0) + (emits & (refused == 0)).to(tl.int32)
    is_spent = n >= tl.load(request + _R_MAX_TOKENS, mask=alive, other=0)
    waits = guided & (tl.load(table + row * _TABLE_WIDTH + _FORCED, mask=guided, other=0) == 2)
    new_ending = tl.where(is_spent, _LENGTH_SPENT, tl.where(waits, _FED, _RUNNING))
    new_ending = tl.where(refused, _REFUSED, tl.where(ends, _STOP, new_ending))
    ending = tl.where(alive, new_ending, ending)
    tl.store(s + _ROW, row, mask=guided)
    tl.store(s + _COUNT, count, mask=guided)
    tl.store(s + _LIMIT, limit, mask=guided)
    tl.store(s + _TEXT_DONE, text_done, mask=guided)
    tl.store(s + _REFLECTION_DONE, reflection_done, mask=guided)
    tl.store(s + _IS_DONE, ending, mask=alive)
    tl.store(s + _NUM_REFLECTIONS, num, mask=guided)
    tl.store(s + _SEGMENT, segment, mask=alive)
    tl.store(s + _OFFERS_DONE, offers, mask=guided)
    tl.store(s + _FRESH, fresh, mask=guided)
    tl.store(s + _NUM_TOKENS, n, mask=alive)
    tl.store(s + _IN_REFLECTION, in_reflection, mask=is_free)
    tl.store(s + _LAST, last, mask=is_free)
    # What the host reads a step later.
    out = output + b * _OUTPUT_WIDTH
    tl.store(out + _O_TOKEN, tl.where(emits, token, -1), mask=exists)
    tl.store(out + _O_KIND, tl.where(emits & (refused == 0), emitted, -1), mask=exists)
    tl.store(out + _O_SEGMENT, segment, mask=exists)
    tl.store(out + _O_IS_FORCED, is_forced.to(tl.int32), mask=exists)
    tl.store(out + _O_IS_DONE, ending, mask=exists)
    tl.store(out + _O_DISCARDED, discarded.to(tl.int32), mask=exists)
    was_drawn = emits & (is_forced == 0) & (refused == 0)
    tl.store(
        logprob + b,
        tl.load(drawn_logprob + slot, mask=was_drawn, other=float("nan"), cache_modifier=".cg"),
        mask=exists,
    )
