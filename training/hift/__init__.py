"""The vocoder: mel frames to samples, with the tensor names of hift.pt.

model.py  HiFT with a harmonic source
train.py  the stage `hift`
"""
