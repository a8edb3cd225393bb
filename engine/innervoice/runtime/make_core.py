"""Puts a core together: every part gets the parts that it calls, and none of those that call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from innervoice.codec.speech_codec import SpeechOutput
from innervoice.model.pages import PagePool
from innervoice.model.runner import ModelRunner
from innervoice.model.text import TextTokenizer
from innervoice.runtime.admission import Admission
from innervoice.runtime.batching import BatchBuilder
from innervoice.runtime.completion import Completion
from innervoice.runtime.core import Core
from innervoice.runtime.decoder import Decoder
from innervoice.runtime.emitter import Emitter
from innervoice.runtime.faults import Faults
from innervoice.runtime.feeding import FeedStep
from innervoice.runtime.host_decode import HostDecode
from innervoice.runtime.outbox import Outbox
from innervoice.runtime.probing import Probing
from innervoice.runtime.reply_factory import ReplyFactory
from innervoice.runtime.reply_table import ReplyTable
from innervoice.runtime.reply_trace import ReplyTrace
from innervoice.runtime.scheduler import LearnedCosts, SchedulerSettings
from innervoice.runtime.scheduler.settings import Preempt
from innervoice.runtime.scoring import Scoring
from innervoice.runtime.sequence_pages import SequencePages
from innervoice.runtime.session_registry import SessionRegistry
from innervoice.runtime.sessions import Sessions
from innervoice.runtime.speech_step import SpeechStep
from innervoice.schedule import Program
from innervoice.telemetry.trace import Tracer

if TYPE_CHECKING:
    from innervoice.model.device_step import DeviceStep


def make_core(
    runner: ModelRunner,
    pool: PagePool,
    tokenizer: TextTokenizer,
    speech: SpeechOutput,
    tracer: Tracer,
    *,
    max_rows: int,
    max_model_len: int,
    share_prefixes: bool = True,
    scheduler: SchedulerSettings | None = None,
    max_waiting: int | None = None,
    preempt: Preempt = "recompute",
    device: tuple[DeviceStep, Program] | None = None,
) -> Core:
    """A core without requests.

    At most max_rows replies hold rows at once, beside as many sessions. max_waiting: replies that may wait
    for a row, the next is refused. preempt: how keys and values of a preempted reply come back. device: the
    step that draws on a GPU, and a program for rows that mean nothing, by which it is timed; None: the host
    draws.
    """
    settings = scheduler or SchedulerSettings(max_rows=max_rows, page_size=pool.page_size)
    costs = LearnedCosts()

    # Replies and sessions, their pages and events.
    table = ReplyTable(speech)
    trace = ReplyTrace(tracer, table.find)
    pages = SequencePages(runner, pool, share_prefixes=share_prefixes)
    registry = SessionRegistry(table)
    faults = Faults()
    outbox = Outbox(table, trace, faults)
    emitter = Emitter(outbox, speech, max_model_len=max_model_len)
    factory = ReplyFactory(pages, tokenizer, speech)

    # The forward pass and the draw.
    host = HostDecode(runner, pages, table, registry, emitter, faults, trace, tracer)
    decoder: Decoder = host
    if device is not None:
        from innervoice.runtime.overlap import Overlap

        decoder = Overlap(host, *device, pages, table, emitter, faults, trace)

    # How replies begin and end.
    completion = Completion(table, registry, decoder, emitter, speech, outbox, factory, pool, faults, tracer)
    admission = Admission(
        table,
        registry,
        decoder,
        emitter,
        speech,
        pages,
        factory,
        trace,
        max_rows=max_rows,
        max_model_len=max_model_len,
        max_waiting=max_waiting,
        preempt_by=preempt,
    )
    probing = Probing(runner, pages, pool, registry, settings, max_rows)
    sessions = Sessions(
        registry,
        table,
        completion,
        decoder,
        pages,
        tokenizer,
        speech,
        max_rows=max_rows,
        max_model_len=max_model_len,
    )
    return Core(
        runner=runner,
        pool=pool,
        pages=pages,
        speech=speech,
        table=table,
        registry=registry,
        sessions=sessions,
        decoder=decoder,
        admission=admission,
        completion=completion,
        batches=BatchBuilder(table, pages, pool, decoder, completion, settings),
        speech_step=SpeechStep(table, speech, completion, outbox, faults, trace, costs, settings),
        feeding=FeedStep(table, decoder, emitter, completion, faults),
        probing=probing,
        scoring=Scoring(probing, table, emitter, completion, faults, max_model_len),
        outbox=outbox,
        faults=faults,
        trace=trace,
        costs=costs,
        settings=settings,
        max_rows=max_rows,
        max_model_len=max_model_len,
    )
