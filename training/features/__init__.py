"""What networks see of audio: mel, pitch, speech tokens.

codebook.py  k-means on Whisper's states
f0.py        pitch
frames.py    how tokens, mel frames and samples lie on one another
mel.py       mel spectra
target.py    the stage `features`
tokens.py    the stage `tokens`
whisper.py   Whisper tiny.en as a WhisperVQ encoder
"""
