"""The events that a client may send, as a tagged union, and their decoder."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol.checked import refusal

Id = Annotated[str, Meta(min_length=1, max_length=512)]
PlayedMs = Annotated[float, Meta(ge=0)]


class ClientEvent(Struct, tag_field="type", frozen=True):
    """An event from the client; event_id: its own name for it, which an error repeats."""

    event_id: Annotated[str, Meta(max_length=512)] | None = None


class SessionUpdate(ClientEvent, tag="session.update", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change the fields of the session that are present."""

    session: dict[str, Any]


class AudioAppend(ClientEvent, tag="input_audio_buffer.append", frozen=True, kw_only=True):
    """Sound of the user; base64 in JSON."""

    audio: bytes


class AudioCommit(ClientEvent, tag="input_audio_buffer.commit", frozen=True):
    """End the user's turn."""


class AudioClear(ClientEvent, tag="input_audio_buffer.clear", frozen=True):
    """Forget the sound that is not committed."""


class OutputClear(ClientEvent, tag="output_audio_buffer.clear", frozen=True):
    """Stop the sound that plays."""


class ItemCreate(ClientEvent, tag="conversation.item.create", frozen=True, kw_only=True):
    """Insert an item after another one; None: at the end, "root": at the front."""

    item: dict[str, Any]
    previous_item_id: str | None = None


class ItemRetrieve(ClientEvent, tag="conversation.item.retrieve", frozen=True, kw_only=True):
    """Ask for an item as it is now."""

    item_id: Id


class ItemDelete(ClientEvent, tag="conversation.item.delete", frozen=True, kw_only=True):
    """Take an item out of the conversation."""

    item_id: Id


class ItemTruncate(ClientEvent, tag="conversation.item.truncate", frozen=True, kw_only=True):
    """Cut an assistant's item to the sound that was heard."""

    item_id: Id
    audio_end_ms: PlayedMs
    content_index: int = 0


class ResponseCreate(ClientEvent, tag="response.create", frozen=True, forbid_unknown_fields=True):
    """Answer, with overrides that last for this response."""

    response: dict[str, Any] | None = None


class ResponseCancel(ClientEvent, tag="response.cancel", frozen=True):
    """Stop the running response, or the named one."""

    response_id: str | None = None


class PlaybackAck(ClientEvent, tag="innervoice.playback.ack", frozen=True, kw_only=True):
    """Report how much of a response was played, from its beginning."""

    response_id: Id
    played_ms: PlayedMs


class Inject(ClientEvent, tag="innervoice.inject", frozen=True, kw_only=True):
    """Give the next reply hidden text that it begins with."""

    text: Annotated[str, Meta(min_length=1, max_length=65536)]


class SessionFork(ClientEvent, tag="innervoice.session.fork", frozen=True):
    """Make a twin of the session, which another connection may take over."""


class SessionExport(ClientEvent, tag="innervoice.session.export", frozen=True):
    """Ask for the history as a signed blob."""


AnyClientEvent = (
    SessionUpdate
    | AudioAppend
    | AudioCommit
    | AudioClear
    | OutputClear
    | ItemCreate
    | ItemRetrieve
    | ItemDelete
    | ItemTruncate
    | ResponseCreate
    | ResponseCancel
    | PlaybackAck
    | Inject
    | SessionFork
    | SessionExport
)
TYPES = frozenset(str(kind.__struct_config__.tag) for kind in AnyClientEvent.__args__)
BETA_ALIASES = {"transcription_session.update": "session.update"}

_DECODER = msgspec.json.Decoder(AnyClientEvent)


class BadEvent(Exception):
    """A message that is no event of the protocol; event_id: the client's, if it can be read."""

    def __init__(self, error: ApiError, event_id: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.event_id = event_id


def decode(message: str | bytes) -> AnyClientEvent:
    """Decode one message. Raises BadEvent."""
    try:
        return _DECODER.decode(message)
    except msgspec.ValidationError as error:
        found = _as_mapping(message)
        event_id = found.get("event_id")
        raise BadEvent(_explain(str(error), found), event_id if isinstance(event_id, str) else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None


def _as_mapping(message: str | bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None
    return found if isinstance(found, dict) else {}


def _not_json(error: Exception) -> BadEvent:
    reason = f"{error}"
    if reason == "Input data was truncated":  # of half an escaped pair as well, wherever it stands
        reason = "it ends too early, or an escape such as \\ud800 lacks its second half"
    return BadEvent(ApiError("invalid_json", f"The message is not valid JSON: {reason}."), None)


def _explain(message: str, found: dict[str, Any]) -> ApiError:
    kind = found.get("type")
    if kind is None:
        return ApiError("missing_required_parameter", "Missing required parameter: 'type'.", "type")
    if not isinstance(kind, str) or kind not in TYPES:
        return ApiError("unknown_event", f"{kind!r} is no event that a client may send."[:300], "type")
    return refusal(message, "")
