"""A dialogue's history, cut to what was heard of its last reply. Pure but for the row that it cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from innervoice.model.sequence import Sequence, TokenRole

Cut = Literal["speech", "transcript"]
Behind = Literal["drop", "keep"]

CODEC_LAG_S = 256 / 22050
"""A token counts as heard once all but so much of its sound is played: sample counts are rounded down to whole frames."""


def check_choices(cut: str, reflection: str) -> None:
    """Raise ValueError for what is no way to cut."""
    for name, value, choices in (("cut", cut, get_args(Cut)), ("reflection", reflection, get_args(Behind))):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}: use {' or '.join(choices)}")


def heard_codes(played_s: float, codes_per_s: float) -> int:
    """Speech tokens whose sound was played to the end, to within a frame."""
    return math.floor((played_s + CODEC_LAG_S) * codes_per_s) if played_s > 0 else 0


def heard_text(num_text: int, num_speech: int, num_heard: int) -> int:
    """The `proportional` estimate of how many transcript tokens were heard: text and speech run at one rate through the reply.

    num_text, num_speech: emitted so far. Text runs ahead of sound, so a reply that was cut while it was made is estimated a
    little too generously, by a segment of text at most.
    """
    return round(num_text * num_heard / num_speech) if num_speech else 0


@dataclass(frozen=True)
class CutReply:
    """What is left of a reply. text_ids: its transcript, as the history keeps it; unheard: those of it taken to be unheard."""

    num_speech: int
    text_ids: list[int]
    unheard: int


def cut_row(
    row: Sequence,
    number: int,
    speech: tuple[int, int],
    num_heard: int,
    cut: Cut,
    reflection: Behind,
    *,
    is_over: bool,
) -> CutReply:
    """Cut reply `number` of a row, its last, behind the speech token that was heard last.

    `speech` keeps all that stands before, text that ran ahead of its sound included, and with it every key and value.
    `transcript` also takes the text back that was not heard; what stands behind the first such token is to be fed again.
    reflection: `keep` leaves hidden tokens that stand behind the cut in the history, `drop` does not. A reply that is over
    and was heard to its end stays whole.
    """
    own = [i for i, reply in enumerate(row.replies) if reply == number]
    spoken = [i for i in own if row.roles[i] is TokenRole.SPOKEN]
    codes = [i for i in spoken if speech[0] <= row.ids[i] < speech[1]]
    text = [i for i in spoken if not speech[0] <= row.ids[i] < speech[1]]
    num_heard = min(num_heard, len(codes))
    unheard = set(text[heard_text(len(text), len(codes), num_heard) :])
    begin = own[0] if own else len(row.ids)
    end = codes[num_heard - 1] + 1 if num_heard else begin
    if is_over and num_heard == len(codes) > 0:
        return CutReply(num_heard, [row.ids[i] for i in text], 0)
    keeps = [
        i
        for i in range(len(row.ids))
        if i < end or (row.roles[i] is TokenRole.HIDDEN and reflection == "keep")
    ]
    if cut == "transcript":
        keeps = [i for i in keeps if i not in unheard]
    kept = set(keeps)
    made = CutReply(num_heard, [row.ids[i] for i in text if i in kept], len(unheard & kept))
    row.keep(keeps)
    return made
