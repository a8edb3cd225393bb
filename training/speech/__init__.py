"""Speech from text: the target voice and users.

augment.py   gain, room and noise
espeak.py    eSpeak NG through its C interface
kokoro.py    Kokoro-82M on ONNX Runtime
phonemes.py  text to Kokoro's phonemes
plan.py      what is said by which voice
synth.py     the stages that say it
"""
