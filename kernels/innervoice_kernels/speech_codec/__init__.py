"""Ops of the speech tokenizer and the speech decoder.

activation_blocks.py  Mish and snake of a tile
conv.py               what streams are made of: what is kept, and a delay
flow_block.py         a transformer of the flow's U-Net
flow_stage.py         a stage of the flow's U-Net: residual block and transformers
fourier.py            the Fourier transform's tables, and the native transform
frame_conv.py         convolutions over frames of true lengths
groupnorm.py          group_norm_mish over true lengths
istft.py              istft: inverse short-time Fourier transform
mel.py                log_mel: the Whisper front end
noise.py              normal noise by frame or sample, whatever the chunks
relative.py           attention of the flow's encoder
relative_layer.py     a layer of the flow's encoder over a stream
residual.py           the vocoder's residual pair
residual_conv.py      its convolution
snake.py              snake: the vocoder's activation
source.py             the vocoder's harmonic source
stft.py               stft of the source, in chunks
stream_conv.py        the vocoder's convolutions over a stream, leaky ReLU included
vq.py                 nearest_code
"""
