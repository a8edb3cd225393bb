"""Recordings as embedding rows of a language model: the audio encoders of Qwen3-Omni and Qwen2.5-Omni.

encoder.py   features to rows, several recordings at once
features.py  samples to log-mel features, window by window
layers.py    the transformer layers over windows, which both share
stems.py     the convolutions in front, chunk by chunk
"""

from __future__ import annotations

from innervoice.codec.audio_encoder.encoder import AudioEncoder, read_tensors
from innervoice.codec.audio_encoder.features import FeatureWindow, RecordingFeatures

__all__ = ["AudioEncoder", "FeatureWindow", "RecordingFeatures", "read_tensors"]
