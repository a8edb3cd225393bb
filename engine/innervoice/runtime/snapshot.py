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
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole
from innervoice.schedule import CursorState, Program, Schedule
from innervoice.types import FinishReason, Sampling

FORMAT = "innervoice session 1"
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
    """A session without its keys and values, which are computed again on restore."""

    model: str
    ids: list[int]
    roles: abc.Sequence[int]
    replies: list[int]
    weights: list[float]
    paused: PausedReply | None = None
    injected: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls, sequence: Sequence, paused: PausedReply | None, model: str, num_tokens: int
    ) -> SessionSnapshot:
        """Copy the first tokens of a sequence."""
        return cls(
            model,
            sequence.ids[:num_tokens],
            sequence.roles[:num_tokens],
            sequence.replies[:num_tokens],
            list(sequence.log_weights),
            paused,
        )

    def fill(self, sequence: Sequence) -> None:
        """Put the tokens into an empty sequence."""
        sequence.log_weights = list(self.weights)
        for token, role, reply in zip(self.ids, self.roles, self.replies, strict=True):
            sequence.append(token, TokenRole(role), reply)

    def check(
        self,
        vocabulary_size: int,
        compile_schedule: Callable[[Schedule], Program],
        max_samples: Callable[[int], float] = lambda num_tokens: math.inf,
    ) -> None:
        """Raise ValueError where this model cannot go on from the snapshot: ids outside its
        vocabulary, a cursor nowhere, more sound delivered than its tokens make.

        max_samples: the most samples of a reply of so many tokens.
        """
        for name in ("ids", "injected"):
            wrong = [i for i in getattr(self, name) if not 0 <= i < vocabulary_size]
            if wrong:
                raise ValueError(
                    f"the session holds id {wrong[0]} in {name}, outside the vocabulary of {vocabulary_size}"
                )
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

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which `from_dict` reads."""
        paused = None if self.paused is None else self.paused.to_dict()
        return asdict(self) | {"roles": [int(role) for role in self.roles], "paused": paused}

    @classmethod
    def from_dict(cls, values: Any) -> SessionSnapshot:
        """Read what `to_dict` gave.

        Raises ValueError for other keys and types, and for columns that do not fit together.
        """
        _check_keys(values, cls, "the session")
        _check(isinstance(values["model"], str), "model", values["model"], "a name")
        for name in ("ids", "roles", "replies", "injected"):
            found = values[name]
            is_list = isinstance(found, list) and all(type(number) is int for number in found)
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
        if head != FORMAT.encode():
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
