"""SavedDialogue: a conversation as bytes, from which another server of the same model goes on."""

from __future__ import annotations

import msgspec

from innervoice import __version__
from innervoice.server.context import ServerContext
from innervoice.server.realtime.conversation import Conversation
from innervoice.server.realtime.history import PendingEdits
from innervoice.server.realtime.items import ConversationItem, ItemList
from innervoice.server.realtime.protocol.session_config import SessionConfig
from innervoice.server.realtime.writer import Writer


class SavedDialogue(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation between two of its replies.

    version: of the server. export: the engine's session. given: ids of items that it was given. cuts, deleted: what
    the next reply takes out of it, as in `PendingEdits`. session_id, conversation_id, expires_at: as the client
    knows them; number: of the last event that it was sent.
    """

    version: str
    config: SessionConfig
    items: list[ConversationItem]
    given: set[str]
    export: bytes
    cuts: dict[str, float]
    deleted: set[str]
    session_id: str
    conversation_id: str
    expires_at: int
    number: int

    def to_bytes(self) -> bytes:
        """Write it as MessagePack."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> SavedDialogue:
        """Read what `to_bytes` wrote. Raises ValueError for bytes of another version, and for damaged ones."""
        try:
            made = msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"the saved conversation cannot be read ({error}): begin a new one") from None
        if made.version != __version__:
            raise ValueError(
                f"the conversation was saved by version {made.version}, and this is {__version__}: begin a new one"
            )
        return made


async def save(conversation: Conversation) -> SavedDialogue:
    """Save a conversation none of whose replies runs. Raises what `Session.aexport` raises."""
    scope = conversation.scope
    edits = scope.history.pending
    listed = list(scope.items.copy())
    for item in listed:
        spoken = scope.history.spoken.get(item.id)
        if item.id in edits.cuts and item.content and spoken is not None:
            item.content[0].text = spoken.spoken.until(edits.cuts[item.id] / 1e3, spoken.sent_s)
    return SavedDialogue(
        version=__version__,
        config=scope.config,
        items=_without_known_sound(listed, scope.history.given),
        given=set(scope.history.given),
        export=await scope.session.aexport(),
        cuts=dict(edits.cuts),
        deleted=set(edits.deleted),
        session_id=scope.session_id,
        conversation_id=scope.conversation_id,
        expires_at=scope.expires_at,
        number=scope.writer.number,
    )


async def restore(saved: SavedDialogue, server: ServerContext, writer: Writer) -> Conversation:
    """Begin the conversation here. Raises what `Engine.aopen_session` raises."""
    session = await server.engine.aopen_session(restore=saved.export)
    items = ItemList(server.options.max_items)
    for item in saved.items:
        items.insert(item)
    writer.number = saved.number
    made = Conversation(server, session, saved.config, writer, items)
    scope = made.scope
    there = {item.item_id for item in await session.aitems()}
    unheard = {item.id for item in saved.items if item.num_audio_bytes} - there
    scope.history.given = saved.given - unheard
    scope.history.pending = PendingEdits(saved.cuts, saved.deleted)
    scope.session_id, scope.conversation_id = saved.session_id, saved.conversation_id
    scope.expires_at = saved.expires_at
    return made


def _without_known_sound(items: list[ConversationItem], given: set[str]) -> list[ConversationItem]:
    """Leave out sound that the engine's session has as codes: that of items before the last reply."""
    last = max((i for i, item in enumerate(items) if item.role == "assistant"), default=-1)
    for item in items[:last]:
        if item.id in given:
            for part in item.content:
                part.audio = None
    return items
