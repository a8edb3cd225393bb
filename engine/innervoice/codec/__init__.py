"""Sound to speech codes and back.

audio.py         sound in: files, bytes, arrays; resampling
audio_encoder/   recordings as embedding rows: the encoders of Qwen3-Omni and Qwen2.5-Omni
call_graphs.py   calls of a network replayed from CUDA graphs, by their size
glm_voice/       GLM-4-Voice's tokenizer and decoder
layers.py        linear, convolution, norms: what flow and vocoder share
residual_vq/     Mimi, EnCodec, DAC, SNAC
modes.py         modes of torch on callers' threads
own_stream.py    an output whose work has a CUDA stream of its own
registry.py      which speech codec a checkpoint has
slot_output.py   what all speech outputs do alike, over a slot table
slot_table.py    which session holds which slot, and what may be done with it
speech_codec.py  the seam of a codec that the engine listens and speaks through
state.py         streaming state of many replies in one set of tensors
streaming.py     a chunk through the layers of a network: the interface of a pass
"""
