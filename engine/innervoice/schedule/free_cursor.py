"""The cursor of free decoding: nothing is masked or forced, tokens are only labelled.

It has the interface of `Cursor`.
"""

from __future__ import annotations

from collections.abc import Sequence

from innervoice.schedule.compile import Program
from innervoice.schedule.cursor_state import CursorState
from innervoice.schedule.emission import Emission, Mask
from innervoice.types import Sampling
from innervoice_kernels.sampling.cursor_columns import UNLIMITED, TokenKind


class FreeCursor:
    """Labels the tokens of an unguided reply; any eos id of the checkpoint ends it.

    It stands at no row and is never capped.
    """

    row = -1
    count = 0
    limit = UNLIMITED
    num_reflections = 0
    text_done = False
    reflection_done = False
    discards = False
    waits = False
    closed: frozenset[str] = frozenset()
    is_reflecting = False  # no segment is open that could be capped
    kind = TokenKind.TRANSCRIPT  # a free reply does not say what comes next: it is taken to speak
    forced: int | None = None
    sampling: Sampling | None = None
    caps: Sequence[int] = ()
    granted: Sequence[int] = ()

    def __init__(
        self, program: Program, *, ignore_eos: bool = False, state: CursorState | None = None
    ) -> None:
        state = state or CursorState()
        self.program = program
        self.mask = Mask(((0, program.vocabulary.size),))
        self.offered = self.mask.ranges
        self.is_done = state.is_done
        self.segment = state.segment
        self._ends = frozenset() if ignore_eos else frozenset(program.vocabulary.eos)
        self._in_reflection = state.in_reflection
        self._last = state.last

    @property
    def state(self) -> CursorState:
        """The position as a value; `make_cursor` takes it."""
        return CursorState(
            is_done=self.is_done, segment=self.segment, in_reflection=self._in_reflection, last=self._last
        )

    def draw(self, token: int) -> Emission:
        """Label a drawn id."""
        kind = self._label(token)
        group = TokenKind.REFLECTION if kind.is_hidden else kind
        if kind is TokenKind.OPEN or group is not self._last:
            self.segment += 1
        self._last = None if kind is TokenKind.CLOSE else group
        return Emission(token, kind, self.segment, forced=False)

    def emit_forced(self) -> Emission:
        """Never called: nothing is forced."""
        raise AssertionError("a free cursor forces nothing")

    def finish_text(self) -> None:
        """Never called: no draw is discarded."""
        raise AssertionError("a free cursor discards no draw")

    def lower_cap(self, cap: int) -> None:
        """Do nothing: a free reply reflects as it likes."""

    def cap_next(self, cap: int) -> None:
        """Do nothing: a free reply reflects as it likes."""

    def _label(self, token: int) -> TokenKind:
        vocabulary = self.program.vocabulary
        if token in self._ends:
            self.is_done = True
            return TokenKind.END
        if vocabulary.speech and vocabulary.speech[0] <= token < vocabulary.speech[1]:
            return TokenKind.SPEECH
        if token == vocabulary.open and vocabulary.close is not None:
            self._in_reflection = True
            return TokenKind.OPEN
        if not self._in_reflection:
            return TokenKind.TRANSCRIPT
        if token == vocabulary.close:
            self._in_reflection = False
            return TokenKind.CLOSE
        return TokenKind.DONE if token == vocabulary.done else TokenKind.REFLECTION
