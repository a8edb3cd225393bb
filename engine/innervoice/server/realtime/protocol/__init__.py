"""The Realtime protocol's events and shapes. Pure: nothing here does I/O.

client_events.py - the events that a client may send, and their decoder
item_input.py - items as clients write them
session_patch.py - fields of a session or a response that a client may set, with their types
session_config.py - the effective settings of a session, their updates and their echo
server_events.py - events of the server, in the GA dialect
response_events.py - events of one response
beta.py - server events in the beta dialect
checked.py - decoding whose refusals name the field
ids.py - ids that the server gives
"""
