"""A session's history, cut to the part of its last reply that was heard.

Pure but for `cut_sequence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from innervoice.model.sequence import Sequence, TokenColumns
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
class ReplySize:
    """Transcript and speech tokens of a reply before it was first cut, by which text that was heard is estimated."""

    num_text: int
    num_speech: int


@dataclass(frozen=True)
class CutReply:
    """The rest of a reply.

    places: its tokens that stay, by their places within it. num_speech: speech tokens among them. text_ids:
    its transcript; unheard: the number of those estimated to be unheard. size: of the whole reply.
    """

    places: list[int]
    num_speech: int
    text_ids: list[int]
    unheard: int
    size: ReplySize


def cut_tokens(
    own: TokenColumns,
    speech: tuple[int, int],
    num_heard: int,
    cut: Cut,
    reflection: Behind,
    *,
    is_over: bool,
    size: ReplySize | None = None,
) -> CutReply:
    """Find the tokens of a reply that an interruption leaves, up to the speech token that was heard last.

    own: the reply's tokens. speech: range of speech ids [first, end). `cut="speech"` keeps all tokens before
    the cut, text that ran ahead of its sound included. `cut="transcript"` also removes unheard text.
    `reflection="keep"` leaves hidden tokens behind the cut, "drop" does not. The tool calls of a reply that is
    over stay, since they have been made. A reply that is over and was
    heard to its end stays whole. size: of a reply that was cut before, so that a second cut leaves what it
    would have left of the whole.
    """
    # The reply's tokens, by what they are.
    spoken = [i for i, role in enumerate(own.roles) if role is TokenRole.SPOKEN]
    codes = [i for i in spoken if speech[0] <= own.ids[i] < speech[1]]
    text = [i for i in spoken if not speech[0] <= own.ids[i] < speech[1]]
    size = size or ReplySize(len(text), len(codes))
    num_heard = min(num_heard, len(codes))
    unheard = set(text[estimate_heard_text(size.num_text, size.num_speech, num_heard) :])

    # Those that stay.
    if is_over and num_heard == size.num_speech > 0:
        return CutReply(list(range(len(own.ids))), num_heard, [own.ids[i] for i in text], 0, size)
    end = codes[num_heard - 1] + 1 if num_heard else 0
    places = [
        i
        for i, role in enumerate(own.roles)
        if i < end
        or (role is TokenRole.HIDDEN and reflection == "keep")
        or (role is TokenRole.CALL and is_over)
    ]
    if cut == "transcript":
        places = [i for i in places if i not in unheard]
    kept = set(places)
    text_ids = [own.ids[i] for i in text if i in kept]
    return CutReply(places, num_heard, text_ids, len(unheard & kept), size)


def cut_sequence(
    sequence: Sequence,
    number: int,
    speech: tuple[int, int],
    num_heard: int,
    cut: Cut,
    reflection: Behind,
    *,
    is_over: bool,
    size: ReplySize | None = None,
) -> CutReply:
    """Cut reply `number` of a sequence, its last, as `cut_tokens` says.

    Tokens that stay in their place keep their keys and values; those behind the first that is missing are to
    be fed again.
    """
    own = [i for i, reply in enumerate(sequence.replies) if reply == number]
    begin = own[0] if own else len(sequence.ids)
    tokens = sequence.columns(len(sequence.ids)).at(own)
    made = cut_tokens(tokens, speech, num_heard, cut, reflection, is_over=is_over, size=size)
    sequence.keep([*range(begin), *(own[i] for i in made.places)])
    return made
