"""Residual-VQ codecs that stand by themselves: Mimi, EnCodec, DAC, SNAC.

causal.py                causal layers of many rows, state before and after
causal_stream.py         streams of the causal codecs, exact in any cutting
chunk_stream.py          streams of chunks that overlap and are faded into each other
codec.py                 Codec: any of them by itself, whole sounds and streams
codes.py                 codes in memory, in a file, and what is wrong with them
dac.py                   both halves of DAC and SNAC
encodec.py               both halves of EnCodec: one causal stream, or chunks
families.py              which codec a checkpoint holds: its config reader, the loaders of its halves
mimi.py                  both halves of Mimi
seanet.py                SEANet, the convolutions of Mimi and EnCodec
slot_stream.py           sessions in slots: buffers, and which run together
weights.py               their tensors by name, weight norm multiplied out
window_stream.py         streams of the codecs that look ahead
windowed_transformer.py  Mimi's transformer over a ring of keys and values
"""
