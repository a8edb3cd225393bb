"""Ops of the language model's layers.

activation.py           silu_mul: gated SiLU
attention.py            paged_attention: causal, ragged, grouped queries, reflection weight
attention_decode.py     its kernel for rows with one query
attention_libraries.py  flash-attn and FlashInfer, where they are installed
attention_prefill.py    its kernel for rows with more
attention_tile.py       the online softmax that both share
expert_groups.py        rows routed to experts, and sorted by them
expert_products.py      products of rows with the weights of their experts
experts.py              expert_ffn: a mixture of experts
kvstore.py              store_kv: keys and values into their pages
kvstore_fp8.py          the same into pages of fp8, with a scale a page
linear.py               linear and gated_linear for few rows, norm and residual fused
linear_int4.py          int4_linear: over int4 weights
linear_lanes.py         inputs of 8 bits times int8 and int4 weights, defined; the layout that a CPU reads
linear_scaled.py        scaled_linear: over int8 and fp8 weights
linear_tiles.py         what the two share
norm.py                 rms_norm
packed.py               codes made into numbers of 16 bits by their bits, two an instruction
paged_batch.py          the arguments of paged attention, checked
qkv.py                  bias, head norms, rotary positions and store_kv in one
rope.py                 rotary: rotary positions
step_attention.py       step_attention: qkv_rope_store and paged_attention of a decode step in one
weight_formats.py       what the numbers of int8, int4 and fp8 weights mean
"""
