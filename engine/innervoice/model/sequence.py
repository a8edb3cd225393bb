"""The tokens of one reply or session, what each is, and the pages that hold their keys and values."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

from innervoice.model.pages import PageTable
from innervoice.model.rows import EmbeddingRow
from innervoice.model.token_role import TokenRole, page_key, token_tags


@dataclass(frozen=True)
class TokenColumns:
    """Tokens without pages: ids, their roles and the numbers of their replies, as in `Sequence`."""

    ids: list[int]
    roles: list[TokenRole]
    replies: list[int]

    @classmethod
    def empty(cls) -> TokenColumns:
        """Columns without a token."""
        return cls([], [], [])

    @classmethod
    def neutral(cls, ids: abc.Sequence[int]) -> TokenColumns:
        """Tokens of a prompt."""
        return cls(list(ids), [TokenRole.NEUTRAL] * len(ids), [0] * len(ids))

    def extend(self, more: TokenColumns) -> None:
        """Add tokens at the end."""
        self.ids.extend(more.ids)
        self.roles.extend(more.roles)
        self.replies.extend(more.replies)

    def at(self, places: abc.Iterable[int]) -> TokenColumns:
        """The tokens at some places, in this order."""
        places = list(places)
        columns = (self.ids, self.roles, self.replies)
        ids, roles, replies = ([column[i] for i in places] for column in columns)
        return TokenColumns(ids, roles, replies)  # type: ignore[arg-type]

    def of_reply(self, number: int) -> TokenColumns:
        """The tokens of one reply."""
        return self.at(i for i, reply in enumerate(self.replies) if reply == number)


@dataclass
class Sequence:
    """A sequence that keeps its pages.

    An item of ids is a token id, or an embedding row of a prompt. ids[:num_cached] have keys and values; the
    next forward pass feeds the rest, or, with a limit, only as
    many as bring num_cached to it: a long prompt goes in by chunks. roles[i] is the role of ids[i],
    replies[i] the number of its reply within the sequence (0: none, then from 1), log_weights[r] ln w of
    reply r. page_keys[i] is what, beside the ids, the keys and values of a page depend on: equal keys and
    ids, equal pages.
    """

    table: PageTable
    ids: list[int] = field(default_factory=list)
    roles: list[TokenRole] = field(default_factory=list)
    replies: list[int] = field(default_factory=list)
    page_keys: list[int] = field(default_factory=list)
    log_weights: list[float] = field(default_factory=lambda: [0.0])
    num_cached: int = 0
    limit: int | None = None

    @property
    def end(self) -> int:
        """One past the last token that the next forward pass feeds."""
        return len(self.ids) if self.limit is None else self.limit

    @property
    def num_new(self) -> int:
        """Tokens that the next forward pass feeds."""
        return self.end - self.num_cached

    @property
    def feeds_rows(self) -> bool:
        """Whether embedding rows are among what the next forward pass feeds."""
        return any(isinstance(token, EmbeddingRow) for token in self.ids[self.num_cached : self.end])

    def extend(self, ids: abc.Sequence[int]) -> None:
        """Add prompt tokens."""
        for token in ids:
            self.append(token, TokenRole.NEUTRAL, 0)

    def begin_reply(self, log_weight: float) -> int:
        """Number of a new reply whose reflection weight is exp(log_weight)."""
        self.log_weights.append(log_weight)
        return len(self.log_weights) - 1

    def append(self, token: int, role: TokenRole, reply: int) -> None:
        """Add a token behind the rest."""
        self.ids.append(token)
        self.roles.append(role)
        self.replies.append(reply)
        if isinstance(token, EmbeddingRow):
            self.page_keys.append(token.page_key)
        else:
            self.page_keys.append(page_key(role, reply, self.log_weights[reply]))

    def feed_last(self) -> None:
        """Have the last token fed again where all are cached: the next draw needs its logits."""
        self.num_cached = min(self.num_cached, len(self.ids) - 1)

    def drop_last(self) -> None:
        """Take the last token back; it has not been fed yet."""
        assert self.num_cached < len(self.ids), "the last token is cached"
        self.truncate(len(self.ids) - 1)

    def drop_call(self, reply: int) -> None:
        """Take back the calls at the end of a reply, which did not come to end with them."""
        end = len(self.ids)
        while end and self.replies[end - 1] == reply and self.roles[end - 1] is TokenRole.CALL:
            end -= 1
        if end < len(self.ids):
            self.truncate(end)

    def truncate(self, num_tokens: int) -> None:
        """Keep the first tokens; pages behind them are given back."""
        for column in (self.ids, self.roles, self.replies, self.page_keys):
            del column[num_tokens:]
        self.table.truncate(min(num_tokens, self.table.capacity))
        self.num_cached = min(self.num_cached, num_tokens)

    def keep(self, indices: abc.Sequence[int]) -> None:
        """Keep these tokens, in this order; what stays in its place keeps its pages,
        the rest is to be fed again.
        """
        same = next((i for i, index in enumerate(indices) if i != index), len(indices))
        moved = [(self.ids[i], self.roles[i], self.replies[i]) for i in indices[same:]]
        self.truncate(same)
        for token, role, reply in moved:
            self.append(token, role, reply)

    def columns(self, num_tokens: int) -> TokenColumns:
        """A copy of the first tokens, without their pages."""
        return TokenColumns(self.ids[:num_tokens], self.roles[:num_tokens], self.replies[:num_tokens])

    def num_common(self, columns: TokenColumns) -> int:
        """The number of tokens that are the same from the first on."""
        mine = zip(self.ids, self.roles, self.replies, strict=True)
        other = zip(columns.ids, columns.roles, columns.replies, strict=True)
        pairs = enumerate(zip(mine, other, strict=False))
        return next((i for i, (a, b) in pairs if a != b), min(len(self.ids), len(columns.ids)))

    def rewrite(self, columns: TokenColumns) -> None:
        """Hold these tokens: those that are the same from the first on keep their pages."""
        same = self.num_common(columns)
        self.truncate(same)
        for i in range(same, len(columns.ids)):
            self.append(columns.ids[i], columns.roles[i], columns.replies[i])

    def release(self) -> None:
        """Give every page back; all tokens are to be fed again."""
        self.table.release()
        self.num_cached, self.limit = 0, None

    def fork(self) -> Sequence:
        """A copy that shares the pages of all cached tokens."""
        table = self.table.fork()
        keys = list(self.page_keys)
        weights = list(self.log_weights)
        table.truncate(self.num_cached)
        return Sequence(
            table, list(self.ids), list(self.roles), list(self.replies), keys, weights, self.num_cached
        )

    def query_tags(self) -> list[int]:
        """Tags of the tokens to be fed, as queries; see token_role.py."""
        fed = range(self.num_cached, self.end)
        return token_tags(fed, TokenRole.SPOKEN, self.roles, self.replies, self.log_weights)

    def key_tags(self) -> list[int]:
        """Tags of the tokens to be fed, as keys."""
        fed = range(self.num_cached, self.end)
        return token_tags(fed, TokenRole.HIDDEN, self.roles, self.replies, self.log_weights)
