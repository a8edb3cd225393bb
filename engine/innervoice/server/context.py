"""ServerContext: what the connections of a server share, and what a connection begins with."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from innervoice.api.engine import Engine
from innervoice.server.admission import Admission, Slot
from innervoice.server.chat.kept import KeptAnswers
from innervoice.server.errors import ApiError
from innervoice.server.http_answers import as_api_error
from innervoice.server.metrics import ServerMetrics
from innervoice.server.options import ServerOptions
from innervoice.server.realtime.resume import Resumable
from innervoice.server.signer import Signer
from innervoice.server.transcriber import Transcriber
from innervoice.server.vad.listener import SpeechListener
from innervoice.types import EngineDead

Dialect = Literal["ga", "beta"]
STORE_S = 2.0  # that a store may take to answer


class LiveConnection(Protocol):
    """A connection of the Realtime protocol, as the shutdown of the server sees it."""

    @property
    def is_busy(self) -> bool:
        """Whether a reply runs, or is still being played by the estimate."""
        ...

    async def end(self, code: int, error: ApiError) -> None:
        """Send the error, and close with the code; any number of times."""
        ...


class SessionStore(Protocol):
    """The place where a server leaves its sessions for others, under their resume tokens."""

    async def save(self, token: str, data: bytes | None, keep_s: float, term: int = 0) -> bool:
        """Leave a session as it is now -> False: another server has taken it over.

        data: None: it can be had from this server alone. term: how often it was taken, as `take` said.
        """
        ...

    async def take(self, token: str) -> tuple[bytes, int] | None:
        """Take a session over -> its state and its term, None: it is not known."""
        ...

    async def is_elsewhere(self, token: str) -> bool:
        """Whether another server has a session."""
        ...

    async def forget(self, token: str) -> None:
        """Forget a session that has ended here."""
        ...


@dataclass
class ServerContext:
    """The parts of a server that its connections share.

    calls: threads for work that would hold the event loop up. live: connections that are open. resumable:
    sessions that wait for their client to come back. store: where sessions are left for other servers, None: they
    end with this one. kept: answers of chat completions.
    """

    engine: Engine
    model_name: str
    options: ServerOptions
    metrics: ServerMetrics
    admission: Admission
    listener: SpeechListener
    transcriber: Transcriber | None
    signer: Signer
    calls: ThreadPoolExecutor
    live: set[LiveConnection] = field(default_factory=set)
    resumable: Resumable = field(default_factory=Resumable)
    store: SessionStore | None = None
    kept: KeptAnswers = field(default_factory=KeptAnswers)

    def check_engine(self) -> None:
        """Raise ApiError (503) once the engine has stopped."""
        try:
            self.engine.check_health()
        except EngineDead as error:
            raise as_api_error(error) from error


@dataclass(frozen=True)
class Opening:
    """The parameters that a connection was opened with.

    model: as the client named it. presets: the session of its client secret. query: of its URL. slot: its
    place among the server's sessions.
    """

    dialect: Dialect
    model: str | None
    presets: Mapping[str, Any]
    query: Mapping[str, str]
    slot: Slot
