"""The events that the server sends, in the GA dialect, without their event_id, which the writer adds."""

from __future__ import annotations

from typing import Any

from innervoice.server.errors import ApiError

ServerEvent = dict[str, Any]


def error(refused: ApiError, event_id: str | None) -> ServerEvent:
    """Report a refused event; event_id: the client's, None: it had none."""
    return {"type": "error", "error": {**refused.body(), "event_id": event_id}}


def session_created(session: dict[str, Any]) -> ServerEvent:
    """Greet the client with the session's settings."""
    return {"type": "session.created", "session": session}


def session_updated(session: dict[str, Any]) -> ServerEvent:
    """Show the settings after an update."""
    return {"type": "session.updated", "session": session}


def conversation_created(id: str) -> ServerEvent:
    """Name the default conversation."""
    return {
        "type": "conversation.created",
        "conversation": {"id": id, "object": "realtime.conversation"},
    }


def item_added(item: dict[str, Any], previous: str | None) -> ServerEvent:
    """Announce an item."""
    return {"type": "conversation.item.added", "previous_item_id": previous, "item": item}


def item_done(item: dict[str, Any], previous: str | None) -> ServerEvent:
    """Show an item that will not grow any more."""
    return {"type": "conversation.item.done", "previous_item_id": previous, "item": item}


def item_retrieved(item: dict[str, Any]) -> ServerEvent:
    """Answer a retrieval."""
    return {"type": "conversation.item.retrieved", "item": item}


def item_deleted(id: str) -> ServerEvent:
    """Confirm a deletion."""
    return {"type": "conversation.item.deleted", "item_id": id}


def item_truncated(id: str, content_index: int, audio_end_ms: int) -> ServerEvent:
    """Confirm a truncation."""
    return {
        "type": "conversation.item.truncated",
        "item_id": id,
        "content_index": content_index,
        "audio_end_ms": audio_end_ms,
    }


def history_shortened(response_id: str, item_ids: list[str]) -> ServerEvent:
    """Name the oldest items, which the engine's history dropped to make room for a response."""
    return {"type": "innervoice.history.shortened", "response_id": response_id, "item_ids": item_ids}


def committed(id: str, previous: str | None) -> ServerEvent:
    """Announce the item that committed sound becomes."""
    return {"type": "input_audio_buffer.committed", "previous_item_id": previous, "item_id": id}


def cleared() -> ServerEvent:
    """Confirm that uncommitted sound is forgotten."""
    return {"type": "input_audio_buffer.cleared"}


def output_cleared(response_id: str) -> ServerEvent:
    """Confirm that a response's sound is stopped."""
    return {"type": "output_audio_buffer.cleared", "response_id": response_id}


def speech_started(id: str, audio_start_ms: int) -> ServerEvent:
    """Announce the beginning of the user's speech, on the clock of all appended sound."""
    return {"type": "input_audio_buffer.speech_started", "audio_start_ms": audio_start_ms, "item_id": id}


def speech_stopped(id: str, audio_end_ms: int) -> ServerEvent:
    """Announce the end of the user's speech, its closing silence included."""
    return {"type": "input_audio_buffer.speech_stopped", "audio_end_ms": audio_end_ms, "item_id": id}


def timeout_triggered(id: str, audio_start_ms: int, audio_end_ms: int) -> ServerEvent:
    """Announce that the user was silent for too long after a reply."""
    return {
        "type": "input_audio_buffer.timeout_triggered",
        "item_id": id,
        "audio_start_ms": audio_start_ms,
        "audio_end_ms": audio_end_ms,
    }


def transcription_completed(id: str, transcript: str, seconds: float) -> ServerEvent:
    """Give the transcript of the user's turn; seconds: of its sound."""
    return {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": id,
        "content_index": 0,
        "transcript": transcript,
        "usage": {"type": "duration", "seconds": seconds},
    }


def transcription_failed(id: str, message: str) -> ServerEvent:
    """Report that the user's turn could not be transcribed."""
    return {
        "type": "conversation.item.input_audio_transcription.failed",
        "item_id": id,
        "content_index": 0,
        # No "param": the parser of @openai/agents-realtime does not take null for it.
        "error": {"type": "transcription_error", "code": "transcription_failed", "message": message},
    }
