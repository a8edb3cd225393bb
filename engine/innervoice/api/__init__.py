"""The calls of a program: Engine, Session, loading a checkpoint, and turning a call into a request.

engine.py           Engine
event_log.py        events to JSON lines
gc_freeze.py        FrozenHeap: loaded objects are left out of garbage collection
live_audio.py       pushed frames to codes while the user speaks, for all sessions
loader.py           directories to a core that is ready to step
memory_plan.py      bytes and sessions, from config files alone
options.py          EngineOptions: what can be chosen when an engine is loaded
request_builder.py  what a caller asks for to a validated request
session.py          Session: turns, pushed audio, fork, export
"""
