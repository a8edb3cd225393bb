"""Token ids to logits: weights, the paged KV cache, the batch, the forward pass.

batch.py         sequences to the tensors of one forward pass
device_step/     a decode step as one CUDA graph
families/        model families and their checkpoints
gguf_blocks.py   GGUF's blocks as numbers, or as our int4
gguf_source.py   the weights of a GGUF file
kv_cache.py      KVCache: keys and values of all layers, in pages
lanes.py         int8 and int4 weights whose rows lie side by side, for inputs of 8 bits on a CPU
lazy_zeros.py    zeros that take memory when they are first written
native.py        the decoder in native code on the CPU
pages.py         PageTable: the pages of one sequence, lent and shared by the native PagePool; page formats
quant.py         int8, int4 and fp8 weights; the one place where a weight is multiplied
quant_source.py  weights that are quantised while they are read, or were before
rope_scaling.py  rotary frequencies, scaled for longer contexts
rows.py          embedding rows: prompt items in place of ids' embeddings
runner.py        one forward pass; owns the cache
sequence.py      Sequence: the tokens of a reply or session, their roles, and their pages
text/            tokenizers, vocabulary, prompt templates
token_role.py    TokenRole: the part of a token in the reflection weight; tags and page keys
transformer.py   the decoder over paged keys and values
weights.py       the tensors of a decoder
"""
