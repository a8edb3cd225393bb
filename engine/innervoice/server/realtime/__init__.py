"""The Realtime protocol: one client's conversation over a WebSocket.

protocol/ - events, sessions and items of the protocol, both dialects
resume.py - conversations that wait for a new connection, by token
reply_output.py - the protocol's events that a reply becomes
extensions.py - innervoice.* events of a reply: reflections, segments, figures
spoken_text.py - a transcript and the places in its sound
usage.py - token counts in the protocol's terms
sound_format.py - sound between the protocol's formats and samples
items.py - the items of a conversation in order
writer.py - the queue of events to one client
job_lane.py - jobs of one session, one after another
"""
