"""Event logs, and replies made again from them.

event_log.py  events to JSON lines
recording.py  what an event log keeps so that its reply can be made again
replay.py     a recorded reply made again and compared
"""
