"""Logits to tokens: masked sampling and the schedule's cursor on the device.

bits.py            sets of ids as packed bits
cursor.py          the schedule's cursor on the device, for a batch of rows
cursor_columns.py  what the numbers in its tensors mean
cursor_walk.py     its rules
fuse.py            the logits of several contexts become one row
head.py            the head over allowed ids, the draws and the cursor: the end of a step
philox.py          counter-based noise
replay.py          replies over scripted logits by the kernels
sample.py          sample: masked drawing
sample_cut.py      where top-k and top-p cut, exactly
sample_pick.py     the draws of a batch in two launches
step.py            the two ends of a decode step: what rows feed and keep
"""
