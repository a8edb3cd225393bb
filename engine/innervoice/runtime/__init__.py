"""The loop: replies, sessions, events, and the thread that steps them.

active_reply.py      a reply in progress
admission.py         how replies get in, and out of their pages again when others need them more
batching.py          from a plan to a batch: the rows of a step, each with its pages
calibration.py       first step times, before the first reply
completion.py        how replies end: cancelled, refused, timed out, failed, complete
conversation.py      messages, the items of a history, edits
core.py              the only loop: plan, feed and draw, emit, make sound
decoder.py           the interface of HostDecode and Overlap, a step's batch and its result
edits.py             edits of a session's items, all or none
emitter.py           an emitted token joins its sequence, its speech codes and the events
event_builder.py     emitted tokens and samples to events and usage
event_queue.py       the bounded queue in which a reply's events wait for their reader
faults.py            the replies whose own work failed, to be ended alone
feed.py              Feed: the queue that a caller fills for a reply's fed segments
feeding.py           FeedStep: gives replies that wait the ids of their feeds
follow.py            the host's cursor takes a token of the device's cursor
fork_guard.py        ForkGuard: calls are refused in a process that was forked from the engine's
fused_contexts.py    FusedContexts: a reply's contexts beside its prompt, and their combination as it stands
fusion.py            Fusion: how the distributions of several contexts become one
history.py           a history's tokens from its items, and turns taken out of it
host_decode.py       the host's side of a step: the forward pass and the draw
interrupt.py         a history, cut to the part that was heard
make_core.py         puts a core together
outbox.py            pending events, stamped when they are handed over
overlap.py           steps on the device while the host works on the step before
playback.py          the listener's clock: sound sent, sound heard, when it runs out
probe.py             Prober: probes from any thread
probing.py           Probing: tokens that are fed for the log-probabilities of given ids behind them
record.py            the line of an event log from which a reply can be made again
reply_factory.py     a request to an ActiveReply
reply_table.py       every reply that waits or is in progress, by id and by row of the scheduler's table
reply_trace.py       the decisions about each reply, and why, as lines of a trace
request.py           Request: a validated request for one reply
row_start.py         a reply as a row of the device takes it over
scheduler/           who runs next
scheduler_view.py    the facts of replies and sessions in the scheduler's columns
scoring.py           Scoring: choices whose texts' log-probabilities decide
sequence_pages.py    the pages of sequences: shared, copied before a write, saved on the host
session_registry.py  sessions by id, which are busy, and what they prefetch
session_state.py     a session between turns
sessions.py          the sessions' operations: open, fork, export, prefetch, acknowledge, interrupt, close
snapshot.py          a session as bytes; a reply cut out of it
speech_step.py       the codec's step: which replies' chunks are made now
stoppable_thread.py  daemon threads that end before the interpreter does
stream.py            the reader's end of a reply, sync and async
warmup.py            the first times of a GPU: kernels compiled, graphs captured
worker.py            the thread that steps the core
"""
