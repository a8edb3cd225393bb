"""The first times of a GPU, before the first reply: kernels compiled side by side, graphs captured."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from innervoice.codec.speech_codec import rehearse
from innervoice.model.sequence import Sequence as Tokens
from innervoice.runtime.core import Core
from innervoice_kernels.graphs import capturing
from innervoice_kernels.jit import compile_all, recorded
from innervoice_kernels.sampling.fuse import FIRST, fuse
from innervoice_kernels.sampling.sample import Draw, sample

# Tokens of the rows of a step: one, of which attention has a kernel of its own, alone and beside others; then what
# products with quantised weights and rotations take by tiles of 16, 32 and 64 rows, and above; as many as experts take
# by tiles of 16.
_STEPS = ((1,), (1, 2), (17,), (33,), (65,), (129,))
_MOST_VOICES = (
    16  # replies that share a graph of the codec; more of them are launched one kernel after the other
)


def warm_up(core: Core) -> None:
    """Compile all kernels that steps, prompts and speech launch, and capture their graphs.

    Nothing of it is left behind. Only while no reply is in progress.
    """
    with recorded() as launches:
        try_prompts(core)
        _try_speech(core, (1,))
    compile_all(launches)
    core.decoder.warmup()
    try_prompts(core)
    with capturing():
        _try_speech(core, voices_tried(core.speech.num_slots))


def voices_tried(num_slots: int) -> list[int]:
    """Numbers of replies that speak in one call of the codec: powers of 2, and none for an output without slots."""
    return [1 << n for n in range(_MOST_VOICES.bit_length()) if 1 << n <= min(num_slots, _MOST_VOICES)]


def try_prompts(core: Core) -> None:
    """Feed prompts of several lengths, with a reflection weight and without; combine and draw by the host."""
    # Attention of as many rows of one token has a kernel of its own; a CPU does not load its file.
    from innervoice_kernels.language.attention_decode import MANY

    most = most_fed(core)
    for is_weighted in (False, True):
        for lengths in (*_STEPS, (1,) * MANY, (most,)):
            with sequences(core, [min(num, most) for num in lengths[:most]]) as rows:
                if is_weighted:
                    rows[0].begin_reply(0.5)
                logits = core.runner.forward(rows)
    sample(logits, [Draw(((0, 1),))])
    sample(logits, [Draw(((0, 1),), (), 0.8, 2, 0.9)])
    fuse(logits, [FIRST] * len(logits))


def most_fed(core: Core) -> int:
    """Prompt tokens that a step feeds at most."""
    return min(
        core.settings.prefill_chunk,
        core.max_model_len - 1,
        core.pool.num_available * core.pool.page_size,
    )


@contextmanager
def sequences(core: Core, lengths: Sequence[int]) -> Iterator[list[Tokens]]:
    """Sequences of so many tokens each, with pages, which are given back."""
    made = [core.pages.new_sequence() for _ in lengths]
    try:
        for sequence, num in zip(made, lengths, strict=True):
            sequence.extend([0] * num)
            sequence.table.grow(num)
        yield made
    finally:
        for sequence in made:
            sequence.release()


def _try_speech(core: Core, numbers: Sequence[int]) -> None:
    for num in numbers if core.speech.num_slots else ():
        rehearse(core.speech, num, uuid.uuid4().hex)
