"""Voice activity: sound of all listeners to the probability of speech, frame by frame.

choose.py    the network that a name stands for
energy.py    EnergyNetwork: level above the background's, for installations without the weights of Silero
listener.py  SpeechListener: the lanes of all connections, judged in one call on one thread
network.py   SpeechNetwork: the seam behind which a network stands
pitch.py     the pitch of voiced frames, for the ends of turns
silero.py    SileroNetwork: Silero VAD v6, from the weights of the silero-vad package
"""
