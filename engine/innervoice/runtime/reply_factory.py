"""Makes an ActiveReply from its request."""

from __future__ import annotations

import math

from innervoice.codec.audio import Resampler
from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.sequence import Sequence
from innervoice.model.text import TextTokenizer
from innervoice.runtime.active_reply import ActiveReply
from innervoice.runtime.event_builder import EventBuilder
from innervoice.runtime.fused_contexts import FusedContexts
from innervoice.runtime.fusion import Fusion
from innervoice.runtime.request import Request
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.snapshot import PausedReply
from innervoice.schedule import make_cursor

NO_INDEX = -1  # table_index of a reply that never got into the table


class ReplyFactory:
    """Makes replies whose events have the tokenizer's text and the speech output's rate."""

    def __init__(self, pages: SequencePages, tokenizer: TextTokenizer, speech: SpeechOutput) -> None:
        self._pages = pages
        self._tokenizer = tokenizer
        self._own_rate = speech.sample_rate

    def make(
        self, request: Request, table_index: int, sequence: Sequence, paused: PausedReply | None = None
    ) -> ActiveReply:
        """A reply at the end of a sequence that holds its prompt. paused: the state from which it goes on."""
        sampling, program = request.sampling, request.program
        if paused is None:
            number = sequence.begin_reply(math.log(program.schedule.reflection_weight))
            num_emitted, state = 0, None
        else:
            number = len(sequence.log_weights) - 1
            num_emitted, state = paused.num_tokens, paused.cursor
        rate = request.output_rate or self._own_rate
        is_resampled = rate != self._own_rate and table_index != NO_INDEX
        events = EventBuilder(
            request.reply_id,
            self._tokenizer,
            num_prompt=len(sequence.ids) - num_emitted,
            num_cached=sequence.num_cached,
            sampling=sampling,
            speech_start=(program.vocabulary.speech or (0, 0))[0],
            rate=rate,
            tool_marks=(program.vocabulary.tool_open, program.vocabulary.tool_close),
            fields=request.event_fields,
        )
        return ActiveReply(
            request=request,
            sequence=sequence,
            cursor=make_cursor(program, request.caps, ignore_eos=sampling.ignore_eos, state=state),
            events=events,
            number=number,
            table_index=table_index,
            resampler=Resampler(self._own_rate, rate) if is_resampled else None,
            fused=None if request.fusion is None else self._contexts(request, request.fusion),
        )

    def _contexts(self, request: Request, fusion: Fusion) -> FusedContexts:
        """The contexts of a request beside its prompt."""
        sequences = [self._pages.new_sequence() for _ in request.contexts]
        for sequence, ids in zip(sequences, request.contexts, strict=True):
            sequence.extend(ids)
        return FusedContexts(fusion, sequences, math.log(request.program.schedule.reflection_weight))

    def make_unstarted(self, request: Request) -> ActiveReply:
        """A reply without a token, for a request that ends before it got a row: its only event is Done."""
        return self.make(request, NO_INDEX, self._pages.new_sequence())
