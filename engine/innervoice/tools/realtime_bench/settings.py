"""CallSettings: the server that is called, how many call it, and how they behave."""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from innervoice.fields import MOST_INT64, Limits, read_fields
from innervoice.tools.realtime_bench.labels import counted

SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
PATH = "/v1/realtime"
_MOST = 10**6


@dataclass(frozen=True)
class CallSettings:
    """Callers of a server of OpenAI's Realtime protocol. Raises ValueError, which names the field.

    turns: `server`: the server detects the end of each question; `manual`: the caller commits it. num_turns: of
    a call; None: until `seconds` are over. seconds: no turn begins later, and callers whose call is over call
    again; None: one call each. think_s: mean pause between a reply's last sound and the next question. barge_in:
    probability that a reply, which is not the last of its call, is interrupted by the next question. arrivals:
    calls a second at random times (Poisson); inf: all at once. num_warmups: calls of one turn that are over before the
    others begin, and not measured. timeout_s: the longest wait for anything that the server must do. silence_ms:
    silence that ends a turn; None: the server's own. session: fields of `session.update` beside the bench's.
    ca_file: certificates (PEM) that the server's may be signed by.
    """

    url: str
    callers: Annotated[int, Limits(1, 4096)] = 1
    dialect: Literal["auto", "ga", "beta"] = "auto"
    turns: Literal["server", "manual"] = "server"
    num_turns: Annotated[int | None, Limits(1, _MOST)] = None
    seconds: Annotated[float | None, Limits(above=0, most=1e6)] = None
    think_s: Annotated[float, Limits(0, 3600)] = 0.5
    barge_in: Annotated[float, Limits(0, 1)] = 0.0
    arrivals: Annotated[float, Limits(above=0, is_finite=False)] = math.inf
    num_warmups: Annotated[int, Limits(0, _MOST)] = 0
    seed: Annotated[int, Limits(0, MOST_INT64)] = 0
    timeout_s: Annotated[float, Limits(above=0, most=3600)] = 30.0
    silence_ms: Annotated[int | None, Limits(0, 60_000)] = None
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    session: Mapping[str, Any] = field(default_factory=dict)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        read_fields(self)
        if self.num_turns is None and self.seconds is None:
            object.__setattr__(self, "num_turns", 3)
        object.__setattr__(self, "url", realtime_url(self.url, self.model))
        if self.ca_file is not None:
            self.tls()

    @property
    def most_turns(self) -> float:
        """The number of turns that a call has at most."""
        return math.inf if self.num_turns is None else self.num_turns

    def tls(self) -> ssl.SSLContext:
        """The certificates that the server's may be signed by. Raises ValueError for a file without any."""
        context = ssl.create_default_context()
        if self.ca_file is not None:
            try:
                context.load_verify_locations(self.ca_file)
            except OSError as error:  # ssl's errors are of its kinds
                raise ValueError(
                    f"ca_file {self.ca_file} holds no certificates ({error}): name a file of them, as PEM"
                ) from None
        return context

    @property
    def shape(self) -> str:
        """The load, as records call it."""
        parts = [counted(self.callers, "caller"), f"{self.turns} turns"]
        parts += [] if self.num_turns is None else [f"{counted(self.num_turns, 'turn')} a call"]
        parts += [] if self.seconds is None else [f"{self.seconds:g} s"]
        parts += [] if not self.barge_in else [f"barge-in {self.barge_in:g}"]
        parts += [] if self.arrivals == math.inf else [f"{self.arrivals:g} calls/s"]
        return ", ".join(parts)


def realtime_url(given: str, model: str | None = None) -> str:
    """The WebSocket's address: http becomes ws, a missing path /v1/realtime, the model a part of the query.

    Raises ValueError.
    """
    remedy = "give the server's address, such as ws://127.0.0.1:8000/v1/realtime"
    try:
        parts = urlsplit(given)
        has_place = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:  # a port that is none, brackets that do not close
        raise ValueError(f"url is {given!r}, which is no address ({error}): {remedy}") from None
    if parts.scheme not in SCHEMES or not has_place:
        raise ValueError(f"url is {given!r}, which is no address of a WebSocket: {remedy}")
    if parts.fragment or parts.username:
        raise ValueError(f"url is {given!r}, which has a fragment or a user: leave that away")
    query = parse_qsl(parts.query, keep_blank_values=True)
    if model is not None:
        query = [pair for pair in query if pair[0] != "model"] + [("model", model)]
    path = PATH if parts.path in ("", "/") else parts.path
    return urlunsplit((SCHEMES[parts.scheme], parts.netloc, path, urlencode(query), ""))
