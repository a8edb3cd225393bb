"""A session's history, cut to the part of its last reply that was heard.

Pure but for the sequence that it cuts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole

Cut = Literal["speech", "transcript"]
Behind = Literal["drop", "keep"]


def check_choices(cut: str, reflection: str) -> None:
    """Raise ValueError if `cut` or `reflection` is not an allowed value."""
    for name, value, choices in (("cut", cut, get_args(Cut)), ("reflection", reflection, get_args(Behind))):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}: use {' or '.join(choices)}")


def count_heard(played_s: float, codes_per_s: float, lag_s: float, codes_per_frame: int = 1) -> int:
    """The number of speech tokens that were heard in played_s seconds, those of whole frames of
    codes_per_frame tokens.

    A token counts once all of its sound but lag_s is played: a codec rounds its number of samples down to
    whole frames.
    """
    num_codes = math.floor((played_s + lag_s) * codes_per_s) if played_s > 0 else 0
    return num_codes - num_codes % codes_per_frame


def estimate_heard_text(num_text: int, num_speech: int, num_heard: int) -> int:
    """The number of transcript tokens that were heard, by the `proportional` estimate: as large a share as of
    the speech.

    num_text, num_speech: tokens emitted so far; num_heard: speech tokens heard. Text runs ahead of sound, so
    the estimate for a reply that was cut while it was made is a little too high, by a segment of text at
    most.
    """
    return round(num_text * num_heard / num_speech) if num_speech else 0


@dataclass(frozen=True)
class CutReply:
    """The rest of a reply in the history.

    text_ids: its transcript; unheard: the number of those estimated to be unheard.
    """

    num_speech: int
    text_ids: list[int]
    unheard: int


def cut_sequence(
    sequence: Sequence,
    number: int,
    speech: tuple[int, int],
    num_heard: int,
    cut: Cut,
    reflection: Behind,
    *,
    is_over: bool,
) -> CutReply:
    """Cut reply `number` of a sequence, its last, behind the speech token that was heard last.

    speech: range of speech ids [first, end). `cut="speech"` keeps all tokens before the cut, text that ran
    ahead of its sound included, and with them every key and value. `cut="transcript"` also removes unheard
    text; tokens behind the first such token are to be fed again. `reflection="keep"` leaves hidden tokens
    behind the cut in the history, "drop" does not. A reply that is over and was heard to its end stays whole.
    """
    # The reply's own tokens, by what they are.
    own = [i for i, reply in enumerate(sequence.replies) if reply == number]
    spoken = [i for i in own if sequence.roles[i] is TokenRole.SPOKEN]
    codes = [i for i in spoken if speech[0] <= sequence.ids[i] < speech[1]]
    text = [i for i in spoken if not speech[0] <= sequence.ids[i] < speech[1]]
    num_heard = min(num_heard, len(codes))
    unheard = set(text[estimate_heard_text(len(text), len(codes), num_heard) :])

    # Which tokens of the whole sequence stay.
    begin = own[0] if own else len(sequence.ids)
    end = codes[num_heard - 1] + 1 if num_heard else begin
    if is_over and num_heard == len(codes) > 0:
        return CutReply(num_heard, [sequence.ids[i] for i in text], 0)
    keeps = [
        i
        for i in range(len(sequence.ids))
        if i < end or (sequence.roles[i] is TokenRole.HIDDEN and reflection == "keep")
    ]
    if cut == "transcript":
        keeps = [i for i in keeps if i not in unheard]
    kept = set(keeps)
    made = CutReply(num_heard, [sequence.ids[i] for i in text if i in kept], len(unheard & kept))
    sequence.keep(keeps)
    return made
