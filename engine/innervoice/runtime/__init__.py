"""The loop: replies, sessions, events, and the thread that steps them.

active_reply.py    a reply in progress
calibration.py     first step times, before anybody waits
core.py            the only loop: plan, forward, sample, voice
event_builder.py   emitted tokens and samples to events and usage
event_queue.py     where a reply's events wait for their reader, bounded
interrupt.py       a history, cut to what was heard
overlap.py         replies in the rows of a stepper, which the host follows a step behind
playback.py        the listener's clock: what was sent, what was heard, when the sound runs out
record.py          the line of an event log from which a reply can be made again
replies.py         the replies that wait and those that run: begun, preempted, ended
reply_trace.py     what each reply does, and why, as lines of a trace
request.py         Request: a validated request for one reply
scheduler/         who runs next
scheduler_view.py  what the scheduler knows of each reply, written down from the replies
session_state.py   a session between turns; a paused reply; exports
sessions.py        the sessions of a core: opened, forked, listened to, interrupted, put to rest
snapshot.py        a session as bytes; a reply cut out of it
stream.py          the reader's end of a reply, sync and async
worker.py          the thread that steps the core
"""
