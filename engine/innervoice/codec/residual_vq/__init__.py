"""Residual-VQ codecs that stand by themselves: Mimi, EnCodec, DAC, SNAC.

causal.py                causal layers of many rows, state before and after
causal_stream.py         streams of the causal codecs, exact in any cutting
codec.py                 Codec: Mimi, EnCodec, DAC, SNAC by themselves
codes.py                 codes in memory, in a file, and what is wrong with them
dac.py                   DAC's and SNAC's
encodec.py               EnCodec's: one causal stream, or chunks
mimi.py                  Mimi's two halves
seanet.py                SEANet, the convolutions of Mimi and EnCodec
slot_stream.py           sessions in slots: buffers, who is next
weights.py               their tensors by name, weight norm multiplied out
window_stream.py         streams of those that look ahead
windowed_transformer.py  Mimi's transformer over a ring of keys and values
"""
