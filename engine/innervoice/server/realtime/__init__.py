"""The Realtime protocol: one client's conversation over a WebSocket.

connection.py       a WebSocket from its first event to its close code
conversation.py     one client's session, and what each of its events does
copies.py           a conversation's twin, and its export
engine_messages.py  items as messages of the engine
extensions.py       innervoice.* events of a reply: reflections, segments, figures
history.py          the engine's session behind the items, and edits that wait
items.py            the items of a conversation in order
job_lane.py         jobs of one session, one after another
openings.py         a conversation with its place in the server: begun, taken over, kept, given back
protocol/           events, sessions and items of the protocol, both dialects
replies.py          the responses of one conversation
reply.py            a reply on its way from the engine's stream to the client
reply_output.py     the protocol's events that a reply becomes
reply_request.py    a response that was asked for, checked, as the engine's options
resume.py           conversations that wait for a new connection, by token
saved.py            SavedDialogue: a conversation as bytes, for another server to go on from
scope.py            the parts of one conversation, for those that handle its events
sound_format.py     sound between the protocol's formats and samples
sound_input.py      the user's sound between client, turn detection and engine
spoken_text.py      a transcript and the places in its sound
usage.py            token counts in the protocol's terms
user_turns.py       the user's turns and what follows from them
writer.py           the queue of events to one client
"""
