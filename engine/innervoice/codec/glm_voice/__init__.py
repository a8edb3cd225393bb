"""GLM-4-Voice's speech tokenizer and speech decoder, streaming.

chunked.py           reference and offline streaming, one reply after the other
chunks.py            where steady streaming cuts: borders, windows, frames of tokens
codec.py             GLM-4-Voice's codec behind the engine's seam
decoder.py           codes to samples: one call, or chunks
encoder_stream.py    the flow's encoder, block by block
flow.py              codes to mel frames: ten Euler steps
flow_encoder.py      the flow's token encoder and length regulator
flow_estimator.py    the flow's U-Net
flow_choice.py       own kernels or torch's for the flow's transformers, by their time
flow_graphs.py       its Euler steps as CUDA graphs, one a number of rows and frames
flow_stream.py       the flow over a bounded window
hift.py              mel frames to samples: the vocoder
hift_graphs.py       its calls over slots as CUDA graphs
hift_stream.py       the vocoder, exact in any cutting
late_pass.py         the vocoder's layers as a stream: centred, late, clipped to the reply
reference_stream.py  chunk after chunk as the original does it; the state is an argument
slot_bytes.py        bytes of a slot, from the configuration
speech_tokenizer.py  samples to codes, in pieces of 30 s
steady.py            steady streaming: all replies that have a chunk
steady_networks.py   its calls of flow and vocoder, with their state in slots
steady_reply.py      its replies: codes, what was decoded of them, the next chunk
tokenizer_stream.py  the same while the recording lasts, block by block, many at once
whisper_encoder.py   its network
"""
