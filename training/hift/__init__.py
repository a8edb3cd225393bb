"""The vocoder: mel frames to samples, with the tensor names of hift.pt.

discriminator.py  what hears whether a spectrum was made, for training alone
model.py          HiFT with a harmonic source
polish.py         the stage `hift-polish`
train.py          the stage `hift`
"""
