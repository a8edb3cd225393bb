"""Several replicas of one server, apart from the program that runs them: where a session goes, lives and moves to.

Nothing here imports Ray, torch or the engine, so that the simulator routes with the same code as a cluster.

audio_ids.py  earlier answers that a chat completion names
directory.py  Directory: which replica has a session, and the session as it was after its last turn
figures.py    the figures of all replicas as one text for Prometheus
placement.py  Placement: the replica for a new session
report.py     ReplicaReport: what a replica says of itself
scaling.py    the number of replicas that the load needs
"""
