"""Operations on tensors: plain PyTorch definitions, native CPU code, Triton kernels.

Imports nothing of the engine.

_C.pyi          types and docstrings of the native module
_C_voice.pyi    those of the networks of speech decoder and codecs
backend.py      which implementation runs: reference or Triton
graphs.py       CUDA graphs: captured before the first reply, or with nothing left behind
interpreter.py  what Triton's interpreter needs beside numpy 2.4
jit.py          Triton, or a stand-in where it is not installed
language/       the language model's ops
native.py       what the ops need of the native module: threads, packed weights
residual_vq/    Mimi, EnCodec, DAC, SNAC
sampling/       sampling, and the cursor on the device
speech_codec/   ops of speech tokenizer and decoder
streams.py      CUDA streams of threads and parts, and what is laid out on one and read on another
testing/        cases of every op, and the error rule
torch_layers.py torch's convolutions and LSTM without TF32
transfer.py     numbers to a device and back, in one copy
worker_pool.py  independent pieces of work side by side on the CPU, a share of the threads each
"""
