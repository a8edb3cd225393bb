"""The interface of HostDecode and Overlap, which draw the tokens of a step; a step's batch and its result."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from innervoice.model.sequence import Sequence
from innervoice.runtime.active_reply import ActiveReply


@dataclass(frozen=True)
class StepResult:
    """The work of a call: rows that drew a token, prompt tokens fed, chunks of sound made; all 0: nothing
    could be done.

    queued: rows of a device step, or chunks, that a later call reads. step_s: seconds on the device that rows and
    prompt_tokens, or chunks, took, None: as long as the call.
    """

    rows: int = 0
    prompt_tokens: int = 0
    chunks: int = 0
    queued: int = 0
    step_s: float | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether nothing could be done."""
        return not (self.rows or self.prompt_tokens or self.chunks or self.queued)


NOTHING = StepResult()


@dataclass(frozen=True)
class StepBatch:
    """The rows of a step, with pages for all that they feed.

    by_host, by_device: replies whose next token the host, or the device, draws. feeding: sequences that are
    fed a part of their prompt. prompt_tokens: fed in all. begun: the decoder's mark of the step's begin. fused: those
    of the replies that have several contexts, each a row.
    """

    by_host: list[ActiveReply]
    by_device: list[ActiveReply]
    feeding: list[Sequence]
    prompt_tokens: int
    begun: Any = None
    fused: list[ActiveReply] = field(default_factory=list)

    @property
    def num_host_rows(self) -> int:
        """Rows that the host draws from."""
        return len(self.by_host) + sum(reply.num_rows - 1 for reply in self.fused if reply.device_row is None)

    @property
    def is_empty(self) -> bool:
        """Whether no row takes part."""
        return not (self.by_host or self.by_device or self.feeding)


class Decoder(Protocol):
    """Draws the tokens of replies.

    The host knows them when `step` returns, or, where steps overlap, one step later.
    """

    captures_graphs: bool
    """Whether CUDA graphs are captured: a codec's second call of a size captures one."""

    @property
    def num_queued(self) -> int:
        """Steps that are queued and not read."""
        ...

    def mark(self) -> Any:
        """A step begins, of which prompts may be a part: the time is taken from here."""
        ...

    def begin(self, reply: ActiveReply) -> bool:
        """Take a reply over whose last token is to be fed; True: the device draws for it from now on."""
        ...

    def leave(self, reply: ActiveReply) -> None:
        """Draw no more for a reply; one that was never taken over is left alone."""
        ...

    def is_spent(self, reply: ActiveReply) -> bool:
        """Whether queued steps already draw all that the reply may have."""
        ...

    def grant(self, reply: ActiveReply, cap: int) -> None:
        """Cap a reply's open reflection, or its next, with the step that follows."""
        ...

    def step(self, batch: StepBatch) -> StepResult:
        """Feed and draw -> the work that was done, of this step or of the one before."""
        ...

    def settle(self) -> bool:
        """Read all queued device steps, so that host state equals device state. False: none was queued."""
        ...

    def warmup(self) -> None:
        """Compile and capture what steps need."""
        ...

    def trial(self, sequences: abc.Sequence[Sequence]) -> AbstractContextManager[Callable[[], None]]:
        """A function that takes a step of sequences that mean nothing, and waits for it.

        Only while no reply is in progress.
        """
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError where host and device disagree."""
        ...
