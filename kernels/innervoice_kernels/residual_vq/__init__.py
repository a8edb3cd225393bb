"""Ops of the residual-VQ codecs.

elu_unit.py      the residual unit of SEANet, ELU included
rvq.py           rvq_encode, rvq_decode: residual vector quantisation
taps.py          convolutions as products, time first
window_layer.py  a layer of Mimi's transformer
windowed.py      attention over the last positions, keys and values in a ring
"""
