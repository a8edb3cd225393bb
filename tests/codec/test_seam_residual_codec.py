"""A residual-VQ codec that is added through the seam alone: two codebooks of levels, a frame is the mean of
four samples.
"""

import numpy as np
import torch

from innervoice import Codec
from innervoice.checkpoint.codecs import ResidualConfig
from innervoice.codec.residual_vq.families import CodecFamily, register_codec_family
from innervoice.codec.residual_vq.window_stream import WindowDecodeStream, WindowEncodeStream

STEPS = (1 / 8, 1 / 128)  # between the levels of a codebook


class LevelConfig(ResidualConfig):
    kind, sample_rate, codebook_size, channels, frame_len, num_codebooks = "levels", 1000, 16, 1, 4, 2


class LevelEncoder:
    config, context_frames = LevelConfig(), 0

    def stream(self, at):
        own = {"num_codebooks": at.num_codebooks, "dtype": at.dtype, "chunk_frames": at.max_frames}
        return WindowEncodeStream(half=self, **own, **at.common)

    def __call__(self, x, num_codebooks):
        rest, ids = x.view(len(x), -1, self.config.frame_len).mean(-1), []
        for step in STEPS[:num_codebooks]:
            ids.append((rest / step + 8).round().clamp(0, 15).long())
            rest = rest - (ids[-1] - 8) * step
        return torch.stack(ids, 1)


class LevelDecoder:
    config, context_frames = LevelConfig(), 0

    def stream(self, at):
        return WindowDecodeStream(half=self, chunk_frames=at.max_frames, **at.common)

    def __call__(self, ids, seed, start):
        levels = sum((row - 8) * step for row, step in zip(ids.unbind(1), STEPS, strict=False))
        return levels.repeat_interleave(self.config.frame_len, 1)[..., None].float()


def test_a_codec_that_was_registered_is_loaded_and_streams(tmp_path):
    halves = (lambda *_: LevelConfig(), lambda *_: LevelEncoder(), lambda *_: LevelDecoder())
    unregister = register_codec_family(CodecFamily("levels", *halves))
    (tmp_path / "config.json").write_text('{"model_type": "levels"}')
    codec = Codec.from_pretrained(tmp_path, load_format="dummy")
    unregister()
    sound = np.repeat(np.random.default_rng(0).uniform(-0.9, 0.9, 300), 4).astype(np.float32)
    codes = codec.encode((sound, 1000))
    assert (codes.kind, codes.num_codebooks, len(codes.ids[0])) == ("levels", 2, 300)
    assert np.abs(codec.decode(codes).samples - sound).max() <= STEPS[1]
    stream = codec.stream_decode(1, chunk_s=0.02)
    stream.push(slot := stream.open(), codes)
    stream.finish(slot)
    pieces = [piece.samples for piece in stream.drain()]
    assert len(pieces) > 50 and np.array_equal(np.concatenate(pieces), codec.decode(codes).samples)
