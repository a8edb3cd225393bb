"""Sound to speech codes and back.

audio.py         sound in: files, bytes, arrays; resampling
glm_voice/       GLM-4-Voice's tokenizer and decoder
layers.py        linear, convolution, norms: what flow and vocoder share
residual_vq/     Mimi, EnCodec, DAC, SNAC
speech_codec.py  the seam of a codec that the engine speaks through
state.py         slots: streaming state of many replies in one set of tensors
"""
