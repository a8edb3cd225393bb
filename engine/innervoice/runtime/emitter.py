"""The way of an emitted token: it joins its sequence, becomes an event and codes of the speech output, and
may end its reply.
"""

from __future__ import annotations

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.outbox import Outbox, PendingToken
from innervoice.runtime.snapshot import PausedReply
from innervoice.schedule import Emission, TokenKind
from innervoice.types import FinishReason

# Looked up once: an enum's attribute costs as much as the rest of a token.
_SPEECH = TokenKind.SPEECH
_END = TokenKind.END


class Emitter:
    """Emits the tokens of replies. A reply that stops gives its pages back unless its session keeps them."""

    def __init__(self, outbox: Outbox, speech: SpeechOutput, *, max_model_len: int) -> None:
        self._outbox = outbox
        self._speech = speech
        self._max_model_len = max_model_len
        self._codes_per_s = speech.codes_per_s
        self._codes_per_frame = speech.codes_per_frame

    def emit(self, reply: ActiveReply, emission: Emission, logprob: float | None) -> None:
        """Emit one token."""
        reply.append(emission)
        self._speak(reply, emission.kind, emission.token)
        if not reply.request.sampling.logprobs:
            logprob = None
        self._outbox.put(PendingToken(reply, emission, logprob))
        reply.finish_if_over(self._max_model_len, self._codes_per_s, self._codes_per_frame)
        if reply.finish is not None:
            self.stop(reply, reply.finish)

    def emit_forced(self, reply: ActiveReply) -> None:
        """Emit every token that the schedule forces now."""
        while reply.finish is None and reply.cursor.forced is not None:
            self.emit(reply, reply.cursor.emit_forced(), None)

    def resume(self, reply: ActiveReply, paused: PausedReply) -> None:
        """Go on with a paused reply: its codes go to the speech output again, and make no event."""
        for kind, token in reply.resume(paused):
            self._speak(reply, kind, token)
        if reply.finish is None:
            reply.finish_if_over(self._max_model_len, self._codes_per_s, self._codes_per_frame)
        if reply.finish is not None:
            self.stop(reply, reply.finish)

    def stop(self, reply: ActiveReply, reason: FinishReason) -> None:
        """Take no more tokens; sound of codes that were emitted is still made."""
        reply.finish = reason
        self._speech.finish(reply.reply_id)
        if reply.request.session_id is None:
            for sequence in reply.sequences:
                sequence.release()

    def _speak(self, reply: ActiveReply, kind: TokenKind, token: int) -> None:
        if kind is _SPEECH:
            speech = reply.request.program.vocabulary.speech
            self._speech.push(reply.reply_id, [token - speech[0] if speech else token])
        elif kind is not _END:
            self._speech.tick(reply.reply_id)
