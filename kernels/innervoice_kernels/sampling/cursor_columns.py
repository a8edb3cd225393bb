"""The numbers in a program and in the cursor's tensors.

The engine's schedule reads them too, so nothing here imports torch.
"""

from __future__ import annotations

from enum import IntEnum

UNLIMITED = 2**31 - 1  # a cap or budget that does not exist: the largest int32


class TokenKind(IntEnum):
    """The kind of a token. The first three are also the kinds of the states that draw."""

    REFLECTION = 0
    TRANSCRIPT = 1
    SPEECH = 2
    OPEN = 3
    CLOSE = 4
    DONE = 5
    END = 6
    TOOL = 7  # text of a tool call
    TOOL_MARK = 8  # what opens and closes one, and stands between two

    @property
    def label(self) -> str:
        """The lower-case name that events and `replay` use."""
        return self.name.lower()

    @property
    def is_spoken(self) -> bool:
        """Whether the token is heard: as text of the transcript or as sound."""
        return self in (TokenKind.TRANSCRIPT, TokenKind.SPEECH)

    @property
    def is_hidden(self) -> bool:
        """Whether the token is never heard: a reflection, or one of its marks."""
        return self is TokenKind.REFLECTION or TokenKind.OPEN <= self <= TokenKind.DONE

    @property
    def is_call(self) -> bool:
        """Whether the token belongs to a tool call."""
        return self in (TokenKind.TOOL, TokenKind.TOOL_MARK)


class ProgramColumn(IntEnum):
    """Columns of one state of a compiled schedule. NEXT is indexed by text done + 2 * reflection done."""

    FORCED = (
        0  # 1: emits the ids at OFFSET, LENGTH of the forced buffer; 2: waits for ids from outside; 0: draws
    )
    KIND = 1  # TokenKind of the emitted token
    BUDGET = 2  # -1: no cap
    NEXT = 3
    CLOSE_ROW = (
        7  # where NEXT is looked up after a drawn close, of a call too, or done, and after the end of a feed
    )
    OFFSET = 8
    LENGTH = 9
    LOW0 = 10
    HIGH0 = 11
    LOW1 = 12
    HIGH1 = 13
    LOW2 = 14  # words that were added to the vocabulary
    HIGH2 = 15
    EXTRA0 = 16  # drawn as well, where ENDS is 2 only once the text is finished; -1: none
    EXTRA1 = 17
    ENDS = 18  # 1: the ids that end a reply are drawn as well, 2: only once the text is finished, 3: SINGLE0 to 3
    ENTRY = 19  # 1: a reflection segment begins here, its cap is asked for
    HEAD = 20  # 1: a segment begins here
    DISCARD = 21  # 1: a speech id ends the text, is discarded, and the next state draws again; or the end of a feed does
    SAMPLING = 22  # index into the program's samplings, -1: the request's
    EDGES = (
        23  # offset into the forced buffer: so many ids, then for each the state that it leads to, or an Edge
    )
    NUM_EDGES = 24
    MISS = 25  # the state that a drawn id without an edge leads to, or CHOOSES
    SINGLE0 = 26  # drawn as well where ENDS is 3; -1: none
    SINGLE1 = 27
    SINGLE2 = 28
    SINGLE3 = 29
    SET = 30  # offset into the sets: packed bits, one for each id of the vocabulary, of ids drawn as well; -1: none
    WIDTH = 31


class Edge(IntEnum):
    """The ways in which a drawn id leads to no state of its segment."""

    CLOSES = -1  # it is emitted as the close of its reflection
    LEAVES = -2  # it is emitted as its state says, and is the last of its segment
    CHOOSES = -3  # of MISS: an id without an edge may not be drawn


class StateColumn(IntEnum):
    """Columns of a row's state.

    ROW -1: at the start of its program. LAST and IN_REFLECTION are those of unguided replies.

    CAP: what the host granted to the reflection that counts as number CAPPED, instead of the
    caller's cap; CAPPED -1: to none.
    """

    ROW = 0
    COUNT = 1
    LIMIT = 2
    TEXT_DONE = 3
    REFLECTION_DONE = 4
    IS_DONE = 5  # one of Ending
    NUM_REFLECTIONS = 6
    SEGMENT = 7
    OFFERS_DONE = 8
    FRESH = 9
    NUM_TOKENS = 10
    IN_REFLECTION = 11
    LAST = 12
    CAPPED = 13
    CAP = 14
    WIDTH = 15


class RequestColumn(IntEnum):
    """Columns of the values that hold for a whole reply; ids that a checkpoint does not have are -1."""

    TABLE = 0  # first rows of its program in the tables of all programs
    FORCED = 1
    SAMPLINGS = 2
    START = 3
    IS_GUIDED = 4
    FLOOR = 5
    REFLECT = 6  # cap of every reflection, UNLIMITED: none
    OPEN = 7
    CLOSE = 8
    DONE = 9
    SPEECH_LOW = 10
    SPEECH_HIGH = 11
    VOCABULARY = 12
    IGNORE_EOS = 13
    MAX_TOKENS = 14
    TOP_K = 15
    TOOL_OPEN = 16
    TOOL_CLOSE = 17
    TOOL_ROW = 18  # where a call's text is drawn, once its open was
    SETS = 19
    EOS = 20  # ids that end the reply, up to 4
    WIDTH = 24


class OutputColumn(IntEnum):
    """Columns of a row's output of a step.

    TOKEN and KIND are -1 where there was nothing to emit, or a draw failed.

    DISCARDED: whether a draw before it said that the text is finished.
    """

    TOKEN = 0
    KIND = 1
    SEGMENT = 2
    IS_FORCED = 3
    IS_DONE = 4
    DISCARDED = 5
    WIDTH = 6


class Ending(IntEnum):
    """The reason why a row emits nothing, or nothing more."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    REFUSED = 3
    IDLE = 4
    WAITING = 5  # for a page: the row runs on when it has one
    PAUSED = 6  # by the host: the row runs on when it is told to
    FED = 7  # its cursor waits for ids from outside: the host goes on with the reply


class MaskColumn(IntEnum):
    """Columns of a draw's mask: three half-open ranges, seven single ids (-1: none), top_k (0: off), and the place of a
    packed set of further ids (-1: none).
    """

    LOW0 = 0
    HIGH0 = 1
    LOW1 = 2
    HIGH1 = 3
    LOW2 = 4
    HIGH2 = 5
    EXTRA0 = 6
    EXTRA1 = 7
    DONE = 8
    END = 9  # ids that end the reply, up to 4
    TOP_K = 13
    SET = 14
    WIDTH = 15
