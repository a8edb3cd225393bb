"""Run a schedule greedily over scripted logits: how the cursor is held to golden traces, and
how a schedule is tried out.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from innervoice.checkpoint.files import refuse_unknown
from innervoice.schedule.compile import Program, compile_schedule
from innervoice.schedule.cursor import Cursor
from innervoice.schedule.emission import Emission, Mask
from innervoice.schedule.make_cursor import make_cursor
from innervoice.schedule.pack import request_values, sampling_table
from innervoice.schedule.program import Schedule
from innervoice.types import Sampling, Vocabulary


def replay(
    schedule: Mapping[str, Any],
    vocab: Mapping[str, Any],
    logits: npt.ArrayLike,
    max_new_tokens: int,
    caps: Sequence[int] | None = None,
    kernel: str = "host",
    feeds: Mapping[str, Sequence[int]] | None = None,
) -> tuple[list[int], list[str]]:
    """Ids and kinds of a greedy reply whose token t is drawn from logits[t].

    schedule: the JSON form; it may hold the run-time `caps` itself. vocab: {"text": [lo, hi], "speech":
    [lo, hi], "eot", "open", "close", "done", "tool_open", "tool_close", "tool_between"}, null where absent.
    logits [T, V]. kernel: "host" is this package's cursor, "triton" the one inside the sampling kernel, on a GPU
    or with TRITON_INTERPRET=1, which takes no feeds. feeds: by name, the ids that fed segments take before their
    feed is closed. Raises ValueError when the logits run out, or the kernel cannot run.
    """
    table = np.asarray(logits)
    if table.ndim != 2:
        raise ValueError(f"logits have shape {table.shape}, expected [T, V]")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 1 or more")
    if kernel not in ("host", "triton"):
        raise ValueError(f"kernel is {kernel!r}: use host or triton")
    # The schedule, with the marks that the vocabulary names where it names none itself.
    plain = {key: value for key, value in schedule.items() if key != "caps"}
    vocabulary = _vocabulary(vocab, table.shape[1])
    tokens = {name: getattr(vocabulary, name) for name in ("open", "close", "done")}
    made = Schedule.from_dict(plain | {"tokens": tokens | dict(plain.get("tokens", {}))})
    program = compile_schedule(made, vocabulary)
    capped = caps if caps is not None else schedule.get("caps") or ()
    if kernel == "triton":
        return _by_kernel(program, table, max_new_tokens, capped)
    # Token by token: the forced id, or the best of the mask; after a discarded draw once more.
    cursor = make_cursor(program, capped)
    ids: list[int] = []
    kinds: list[str] = []
    left = {name: list(feeds[name]) if feeds else [] for name in made.feeds}
    while len(ids) < max_new_tokens and not cursor.is_done:
        if len(ids) >= len(table):
            raise ValueError(f"logits hold {len(table)} rows, but the reply goes on after that many tokens")
        emission = None
        while emission is None:
            if cursor.waits and isinstance(cursor, Cursor):
                emission = _take(cursor, left)
            elif cursor.forced is not None:
                emission = cursor.emit_forced()
            else:
                emission = cursor.draw(_best(table[len(ids)], cursor.mask))
        ids.append(emission.token)
        kinds.append(emission.kind.label)
    return ids, kinds


def _by_kernel(
    program: Program, logits: npt.NDArray[Any], max_new_tokens: int, caps: Sequence[int]
) -> tuple[list[int], list[str]]:
    # Found only when it is asked for: nothing else of this package needs torch.
    kernels = importlib.import_module("innervoice_kernels.sampling.replay")
    request = request_values(program, Sampling(max_new_tokens=max_new_tokens))
    ids, kinds = kernels.replay_program(
        (program.table, program.forced, sampling_table(program), program.sets), request, logits, caps
    )
    return ids, kinds


def _take(cursor: Cursor, left: Mapping[str, list[int]]) -> Emission | None:
    """The next id of the feed that a cursor waits for; None: it has none left, and is closed."""
    name = cursor.feed_name
    if name is None:
        raise ValueError("a scored choice needs a model: replay has its logits alone")
    if left[name]:
        return cursor.feed(left[name].pop(0))
    cursor.close_feed()
    return None


def _best(row: npt.NDArray[Any], mask: Mask) -> int:
    allowed = np.concatenate([np.arange(*r) for r in mask.ranges] + [np.array(mask.extras, dtype=np.int64)])
    allowed.sort()
    return int(allowed[np.argmax(row[allowed])])


def _vocabulary(vocab: Mapping[str, Any], size: int) -> Vocabulary:
    marks = ("open", "close", "done", "tool_open", "tool_close", "tool_between")
    refuse_unknown(vocab, ("text", "speech", "eot", *marks), "vocab")
    text, speech = vocab["text"], vocab.get("speech")
    return Vocabulary(
        size=size,
        text=(text[0], text[1]),
        speech=(speech[0], speech[1]) if speech else None,
        end_of_turn=vocab.get("eot"),
        eos=() if vocab.get("eot") is None else (vocab["eot"],),
        **cast(dict[str, Any], {name: vocab.get(name) for name in marks}),
    )
