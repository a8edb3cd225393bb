"""The calls of a program: Engine, Session, loading a checkpoint, and turning a call into a request.

available_memory.py bytes that this process can still get
configs.py          Configs: the config files, read and checked against each other
dialogue.py         TurnPlanner: the ids of a session's next turn
capacity.py         refusals of what does not fit into memory
encoded_counts.py   EncodedCounts: speech tokens that were encoded, early and late
engine.py           Engine: load a model, answer prompts, open sessions
engine_lease.py     EngineLease: an engine runs while its user can reach it
evaluation_prompt.py  question and reply in the prompt that heads were trained on
evaluator.py        Evaluator: empathy of replies, scored by heads on hidden states
event_log.py        EventLog: events to JSON lines
fed_items.py        the feeds of a request, and the ids of what is put into one
gc_freeze.py        FrozenHeap: loaded objects are left out of garbage collection
judge.py            ZeroShotJudge: a reply rated by the probabilities of the digits 1 to 5
likelihood.py       log-probabilities of given continuations
live_audio.py       LiveEncoder: pushed frames to codes while users speak, for all sessions
loader.py           EngineParts: a checkpoint loaded as planned
memory_plan.py      MemoryPlan: bytes and sessions, from config files alone
options.py          EngineOptions: the options that an engine is loaded with
page_sums.py        PageSums: sums of hidden states over pages
pending.py          PendingItems: messages and sound that wait for a session's next reply
preparation.py      files of config and tokenizer, read and checked before the weights
prompt_ids.py       refusals of a prompt's ids and embedding rows
request_builder.py  RequestBuilder: a prompt and options to a validated request
row_encoder.py      RowEncoder: recordings as embedding rows, each window encoded once
session.py          Session, with its calls for event loops
session_calls.py    SessionCalls: turns, pushed audio, edits, fork, export
tool_choice.py      the choice among the tools of a request
"""
