"""A validated request for one reply, as the core takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from innervoice.model.sequence import TokenColumns
from innervoice.model.text.dialogue import DialogueItem
from innervoice.runtime.feed import Feed
from innervoice.runtime.fusion import Fusion
from innervoice.schedule import Program
from innervoice.types import EventField, OutputFormat, Sampling


def _do_nothing() -> None:
    pass


@dataclass(frozen=True)
class SessionTurn:
    """The place of a session's reply in its history.

    items: all before the reply, with its prompt. head: the system text before them, None: none or the
    template's own. own_head: the one that the session goes back to with the next reply. history: the tokens
    that the session's are replaced by, None: they stay. item_id: of the reply's item. on_begun: called on the
    core's thread when the reply begins, from which on its prompt is part of the history.
    """

    items: tuple[DialogueItem, ...]
    head: str | None = None
    own_head: str | None = None
    history: TokenColumns | None = None
    item_id: str | None = None
    on_begun: Callable[[], None] = field(default=_do_nothing, compare=False)


@dataclass(frozen=True)
class Request:
    """A validated request: sampling has no unset field; submitted_s is the time on the worker's clock when it
    was made.

    session_id: the session that it continues, None for a single reply. output_rate: of the audio in Hz, None:
    the decoder's own. output_format: type of the samples. priority: higher ones go first. is_live: a listener
    hears the reply while it is made, so that it is made at the listener's pace. event_fields: fields that the
    caller adds to events. turn: of a session's reply; None: its ids are a prompt behind the history. feeds: by name,
    those that its schedule takes ids from. contexts, fusion: prompts beside its own, and how their distributions are
    combined; None: it has none.
    """

    reply_id: str
    prompt_ids: tuple[int, ...]
    program: Program
    sampling: Sampling
    submitted_s: float
    caps: tuple[int, ...] = ()
    deadline_s: float = math.inf
    session_id: str | None = None
    output_rate: int | None = None
    priority: int = 0
    is_live: bool = False
    output_format: OutputFormat = "float32"
    event_fields: tuple[EventField, ...] = ()
    turn: SessionTurn | None = None
    feeds: Mapping[str, Feed] = field(default_factory=dict, compare=False)
    contexts: tuple[tuple[int, ...], ...] = ()
    fusion: Fusion | None = None

    @property
    def history(self) -> TokenColumns | None:
        """Tokens that replace those of the session, None: these stay."""
        return None if self.turn is None else self.turn.history


def attach_feeds(request: Request, wake: Callable[[], None]) -> None:
    """Let a request's feeds give their ids to it alone. Raises ValueError for one that another reply has."""
    for feed in request.feeds.values():
        feed.attach(wake)


def end_feeds(request: Request) -> None:
    """Let a request's feeds take nothing more: its reply is over, or never was."""
    for feed in request.feeds.values():
        feed.end()


class PromptTooLong(ValueError):
    """A prompt, or history and prompt, that leave no room for a reply: num_tokens of at most `most` with it.

    found: what is too long, with its tokens. remedy: a sentence's end in place of the usual one.
    """

    def __init__(self, found: str, num_tokens: int, most: int, remedy: str | None = None) -> None:
        usual = f" and the cache holds {most}, reply included: shorten it or raise max_model_len"
        super().__init__(found + (usual if remedy is None else remedy))
        self.num_tokens = num_tokens
        self.most = most


def check_length(num_tokens: int, max_model_len: int) -> None:
    """Raise PromptTooLong when history and prompt leave no room for a reply."""
    if num_tokens >= max_model_len:
        raise PromptTooLong(
            f"history and prompt have {num_tokens} tokens, {num_tokens - max_model_len + 1} more than the cache holds beside a ",
            num_tokens,
            max_model_len,
            f"reply: load the model with max_model_len above {num_tokens}, or open a new session",
        )
