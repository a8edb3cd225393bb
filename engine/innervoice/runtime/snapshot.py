"""A session as bytes, and a reply that was running when its session was forked or exported."""

from __future__ import annotations

import hashlib
import json
from collections import abc
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from innervoice.model.sequence import Sequence, TokenRole
from innervoice.types import FinishReason, Sampling

FORMAT = "innervoice session 1"


@dataclass(frozen=True)
class PausedReply:
    """A reply that was running when its session was forked or exported; cursor is the cursor's state."""

    schedule: dict[str, Any]
    sampling: Sampling
    cursor: dict[str, Any]
    num_tokens: int
    num_samples: int
    finish: FinishReason | None = None


@dataclass(frozen=True)
class SessionSnapshot:
    """What a session is made of: everything but the keys and values, which are computed again on restore."""

    model: str
    ids: list[int]
    roles: abc.Sequence[int]
    replies: list[int]
    weights: list[float]
    paused: PausedReply | None = None
    injected: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, row: Sequence, paused: PausedReply | None, model: str, num_tokens: int) -> SessionSnapshot:
        """Copies the first tokens of a row."""
        return cls(
            model,
            row.ids[:num_tokens],
            row.roles[:num_tokens],
            row.replies[:num_tokens],
            list(row.weights),
            paused,
        )

    def fill(self, row: Sequence) -> None:
        """Put the tokens into an empty row."""
        row.weights = list(self.weights)
        for token, role, reply in zip(self.ids, self.roles, self.replies, strict=True):
            row.append(token, TokenRole(role), reply)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"roles": [int(role) for role in self.roles]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SessionSnapshot:
        """What `to_dict` gave. Raises KeyError, TypeError."""
        paused = values["paused"]
        if paused is not None:
            sampling = paused["sampling"] | {"stop_token_ids": tuple(paused["sampling"]["stop_token_ids"])}
            paused = PausedReply(**paused | {"sampling": Sampling(**sampling)})
        return cls(**{f.name: values[f.name] for f in fields(cls)} | {"paused": paused})

    def to_bytes(self) -> bytes:
        """A line that says what it is, a line with the checksum of the rest, and JSON."""
        body = json.dumps(self.to_dict()).encode()
        return b"\n".join((FORMAT.encode(), hashlib.sha256(body).hexdigest().encode(), body))

    @classmethod
    def from_bytes(cls, data: bytes, model: str) -> SessionSnapshot:
        """Read what `to_bytes` wrote. Raises ValueError for foreign or damaged data and for a session of another model."""
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
        values = json.loads(body)
        if values["model"] != model:
            raise ValueError(
                "restore: the session was exported from another model; its ids mean nothing to this one"
            )
        return cls.from_dict(values)
