"""Event logs, and replies made again from them.

recording.py  what an event log keeps so that its reply can be made again
replay.py     a recorded reply made again and compared
"""
