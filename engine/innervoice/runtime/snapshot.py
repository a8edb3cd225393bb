"""A session as bytes, and a reply that was in progress when its session was forked or exported."""

from __future__ import annotations

import hashlib
import json
import math
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

from innervoice.fields import MOST_INT64, Count, Limits, read_fields
from innervoice.model.rows import EmbeddingRow, is_id, rows_among, with_rows_read, with_rows_written
from innervoice.model.text.dialogue import DialogueItem, SpokenCodes
from innervoice.model.token_role import TokenRole
from innervoice.schedule import CursorState, Program, Schedule
from innervoice.types import FinishReason, Ids, Sampling

FORMAT = "innervoice session 2"
FORMAT_1 = "innervoice session 1"  # without items: read, and not written
_SINCE_2: Mapping[str, Any] = {"items": [], "pending": [], "head": None, "own_head": None}
_MOST_LOG_WEIGHT = 1000.0  # ln of the largest and the smallest positive float is nearer to 0


@dataclass(frozen=True)
class PausedReply:
    """A reply that was in progress when its session was forked or exported: its settings and how far it has
    come.
    """

    schedule: dict[str, Any]
    sampling: Sampling
    cursor: CursorState
    num_tokens: Count
    num_samples: Annotated[int, Limits(0, MOST_INT64)]
    finish: FinishReason | None = None

    @classmethod
    def from_dict(cls, values: Any) -> PausedReply:
        """Read its part of a snapshot. Raises ValueError for other keys or types."""
        _check_keys(values, cls, "the unfinished reply")
        made = cls(
            schedule=values["schedule"],
            sampling=_read_sampling(values["sampling"]),
            cursor=CursorState.from_json(values["cursor"]),
            num_tokens=values["num_tokens"],
            num_samples=values["num_samples"],
            finish=values["finish"],
        )
        read_fields(made, "the unfinished reply's ")
        return made

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which `from_dict` reads."""
        return asdict(self) | {"cursor": self.cursor.to_json()}


@dataclass(frozen=True)
class SessionSnapshot:
    """A session without its keys and values, which are computed again on restore.

    items: the messages and replies that the ids consist of; none: not known, as in the format's first version.
    pending: items that wait for the next reply. head: the system text before the items, own_head: the one that
    the next reply goes back to.
    """

    model: str
    ids: list[int]
    roles: abc.Sequence[int]
    replies: list[int]
    weights: list[float]
    paused: PausedReply | None = None
    injected: list[int] = field(default_factory=list)
    items: list[DialogueItem] = field(default_factory=list)
    pending: list[DialogueItem] = field(default_factory=list)
    head: str | None = None
    own_head: str | None = None

    def check(
        self,
        vocabulary_size: int,
        compile_schedule: Callable[[Schedule], Program],
        max_samples: Callable[[int], float] = lambda num_tokens: math.inf,
        *,
        num_codes: int | None = None,
        hidden_size: int | None = None,
    ) -> None:
        """Raise ValueError where this model cannot go on from the snapshot: ids outside its
        vocabulary, a cursor nowhere, more sound delivered than its tokens make.

        max_samples: the most samples of a reply of so many tokens. num_codes: size of the codebook, by which
        the speech codes of items are checked. hidden_size: the width that embedding rows have.
        """
        self._check_items(vocabulary_size, num_codes)
        for name in ("ids", "injected"):
            wrong = [i for i in getattr(self, name) if not 0 <= i < vocabulary_size]
            if wrong:
                raise ValueError(
                    f"the session holds id {wrong[0]} in {name}, outside the vocabulary of {vocabulary_size}"
                )
        self._check_rows(hidden_size)
        paused = self.paused
        if paused is None:
            return
        paused.cursor.check(compile_schedule(Schedule.from_dict(paused.schedule)))
        number = len(self.weights) - 1
        own = sum(reply == number for reply in self.replies)
        if number < 1 or not self.ids or paused.num_tokens != own:
            raise ValueError(
                f"the session's unfinished reply has {paused.num_tokens} tokens, and {own} of its {len(self.ids)} tokens are of "
                f"reply {number}: export it again"
            )
        most = max_samples(own)
        if paused.num_samples > most:
            raise ValueError(
                f"the unfinished reply's num_samples is {paused.num_samples}: its {own} tokens make at most {most:.0f}"
            )
        if paused.cursor.is_done and not own:
            raise ValueError("the session's unfinished reply is done without a token: export it again")

    def _check_rows(self, hidden_size: int | None) -> None:
        for _, row in rows_among([*self.ids, *self.injected]):
            width = row.block.values.shape[1]
            if hidden_size is not None and width != hidden_size:
                raise ValueError(
                    f"the session's embedding rows have {width} values: this model takes {hidden_size}"
                )

    def _check_items(self, vocabulary_size: int, num_codes: int | None) -> None:
        items = [*self.items, *self.pending]
        parts = [part for item in items for part in item.parts]
        ids = [i for part in parts if isinstance(part, Ids) for i in part.ids]
        spoken = [i for part in parts if isinstance(part, SpokenCodes) for i in part.codes]
        codes = [i for i in spoken if not isinstance(i, EmbeddingRow)]
        ids += [i for i in spoken if isinstance(i, EmbeddingRow)]
        for name, numbers, size in (("id", ids, vocabulary_size), ("speech code", codes, num_codes)):
            wrong = [i for i in numbers if size is not None and not 0 <= i < size]
            if wrong:
                raise ValueError(f"the session's items hold {name} {wrong[0]}: each must be below {size}")
        wrong = [item.reply for item in items if item.reply >= len(self.weights)]
        if wrong:
            raise ValueError(f"the session's items hold reply {wrong[0]} of {len(self.weights) - 1}")
        if len({item.item_id for item in items}) < len(items):
            raise ValueError("two of the session's items have one item_id: export it again")
        if (self.items and not self.items[-1].reply) or any(item.reply for item in self.pending):
            raise ValueError("the session's history must end with a reply, and what waits hold none")

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which `from_dict` reads."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        made = columns | {
            "ids": list(self.ids),
            "roles": [int(role) for role in self.roles],
            "paused": None if self.paused is None else self.paused.to_dict(),
            "items": [item.to_json() for item in self.items],
            "pending": [item.to_json() for item in self.pending],
        }
        return with_rows_written(made)

    @classmethod
    def from_dict(cls, values: Any) -> SessionSnapshot:
        """Read what `to_dict` gave.

        Raises ValueError for other keys and types, and for columns that do not fit together.
        """
        if isinstance(values, Mapping):
            values = with_rows_read(values)
            if not values.keys() & _SINCE_2.keys():
                values = {**values, **_SINCE_2}
        _check_keys(values, cls, "the session")
        for name in ("items", "pending"):
            _check(isinstance(values[name], list), name, values[name], "a list of items")
        for name in ("head", "own_head"):
            _check(isinstance(values[name], str | None), name, values[name], "null or text")
        _check(isinstance(values["model"], str), "model", values["model"], "a name")
        for name in ("ids", "roles", "replies", "injected"):
            found = values[name]
            is_list = isinstance(found, list) and all(map(is_id, found))
            _check(is_list, name, found, "a list of whole numbers")
        ids, roles, replies, weights = (values[name] for name in ("ids", "roles", "replies", "weights"))
        is_list = isinstance(weights, list) and all(type(weight) in (int, float) for weight in weights)
        _check(is_list and weights[:1] == [0.0], "weights", weights, "a list of numbers that begins with 0")
        wrong = [weight for weight in weights if not abs(weight) < _MOST_LOG_WEIGHT]
        _check(not wrong, "weights", wrong, f"within {_MOST_LOG_WEIGHT}")
        if not len(ids) == len(roles) == len(replies):
            raise ValueError(
                f"the session has {len(ids)} ids, {len(roles)} roles and {len(replies)} replies: each token has one"
            )
        _check_each("roles", roles, len(TokenRole))
        _check_each("replies", replies, len(weights))
        paused = values["paused"]
        return cls(
            model=values["model"],
            ids=ids,
            roles=roles,
            replies=replies,
            weights=[float(weight) for weight in weights],
            paused=None if paused is None else PausedReply.from_dict(paused),
            injected=values["injected"],
            items=[DialogueItem.from_json(item) for item in values["items"]],
            pending=[DialogueItem.from_json(item) for item in values["pending"]],
            head=values["head"],
            own_head=values["own_head"],
        )

    def to_bytes(self) -> bytes:
        """A line that says what it is, a line with the checksum of the rest, and JSON."""
        body = json.dumps(self.to_dict()).encode()
        return b"\n".join((FORMAT.encode(), hashlib.sha256(body).hexdigest().encode(), body))

    @classmethod
    def from_bytes(cls, data: bytes, model: str) -> SessionSnapshot:
        """Read what `to_bytes` wrote.

        Raises ValueError for foreign or damaged data and for a session of another model.

        Bytes come from outside: `check` holds what is read against the model before
        anything else is done with it.
        """
        head, _, rest = bytes(data).partition(b"\n")
        if head not in (FORMAT.encode(), FORMAT_1.encode()):
            raise ValueError(
                f"restore: these {len(data)} bytes are no exported session of this version ({FORMAT})"
            )
        checksum, _, body = rest.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            raise ValueError(
                "restore: the exported session is damaged, its checksum does not match: export it again"
            )
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"restore: the exported session is damaged, its content is no JSON: {error}"
            ) from error
        made = cls.from_dict(values)
        if made.model != model:
            raise ValueError(
                "restore: the session was exported from another model; its ids mean nothing to this one"
            )
        return made


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"the session's {name} is {str(value)[:80]}: it must be {expected}")


def _check_each(name: str, numbers: list[int], size: int) -> None:
    wrong = [number for number in numbers if not 0 <= number < size]
    if wrong:
        raise ValueError(f"the session has {wrong[0]} in {name}: each must be from 0 to {size - 1}")


def _check_keys(values: Any, made: type, name: str) -> None:
    expected = {f.name for f in fields(made)}
    if not isinstance(values, Mapping) or values.keys() != expected:
        found = sorted(map(str, values)) if isinstance(values, Mapping) else repr(values)[:80]
        raise ValueError(f"{name} holds {found}: it must be an object of {', '.join(sorted(expected))}")


def _read_sampling(values: Any) -> Sampling:
    _check_keys(values, Sampling, "the unfinished reply's sampling")
    return Sampling(**values)
