"""ServerOptions: the options of a server, beside those of its engine."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from innervoice.fields import AtLeastOne, Limits, NotNegative, Positive, read_fields
from innervoice.schedule import Schedule

VadName = Literal["silero", "energy"]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Address, keys, origins and limits of a server.

    api_keys: keys that clients give; none: everybody may. allow_origins: origins of web pages beside the
    server's own and those on loopback, "*" for all. drain_s: seconds that running replies have to end and to be
    played after SIGTERM. schedule: of replies whose client asks for none. vad: the network behind turn
    detection. transcription_url: base of a service with an OpenAI-style `/audio/transcriptions`, whose model is
    transcription_model. max_output_tokens: ceiling of a reply's tokens. max_session_text: characters of an
    item. secret: signs client secrets and resume tokens, so they end with the
    process by default.

    Raises ValueError, which names the field.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Limits(0, 65535)] = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_origins: tuple[str, ...] = ()
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    drain_s: NotNegative = 30.0
    schedule: Schedule | str | None = None
    vad: VadName = "silero"
    transcription_url: str | None = None
    transcription_key: str | None = field(default=None, repr=False)
    transcription_model: str = "whisper-1"
    max_message_bytes: AtLeastOne = 24 * 2**20
    max_session_s: Positive = 3600.0
    idle_s: Positive = 900.0
    resume_grace_s: NotNegative = 30.0
    slow_reader_s: Positive = 30.0
    max_output_tokens: AtLeastOne = 2000
    max_items: AtLeastOne = 4000
    max_session_text: AtLeastOne = 256_000
    max_bad_events: AtLeastOne = 100
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def __post_init__(self) -> None:
        read_fields(self)
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    "an API key is empty or has other than printable ASCII characters: use letters and digits"
                )
        for origin in self.allow_origins:
            check_origin(origin)
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile is given without ssl_certfile: give the certificate as well")
        for name in ("ssl_certfile", "ssl_keyfile"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"{name} {path} is no file: give one in PEM format")
        url = self.transcription_url
        if url is not None and urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"transcription_url is {url!r}: it must begin with http:// or https://")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)

    @property
    def scheme(self) -> str:
        """The scheme of the server's address: http or https."""
        return "http" if self.ssl_certfile is None else "https"


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an address, is this machine as it reaches itself."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_origin(origin: str) -> None:
    """Raise ValueError unless this is an origin as browsers send it, or "*"."""
    if origin == "*":
        return
    parts = urlsplit(origin)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or origin != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError(f"allow_origins has {origin!r}: write scheme://host or scheme://host:port, or *")
