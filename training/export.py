"""Checkpoints in the formats that GLM-4-Voice ships, with weights as float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.features import whisper
from training.features.codebook import VOCAB_SIZE
from training.features.mel import NUM_MELS, WHISPER_HOP, WHISPER_N_FFT, WHISPER_RATE
from training.features.tokens import load_codebook
from training.flow.model import SCALE
from training.flow.train import STAGE as FLOW_STAGE
from training.hift import polish
from training.lm import model as lm
from training.lm import vocabulary
from training.lm.train import STAGE as LM_STAGE
from training.loop import load_weights
from training.sources import tiny_en
from training.workdir import Log, save_json, stage_dir, write_atomic

CONFIG = Path(__file__).parent / "decoder.yaml"
TOKENIZER_DIR = "glm-4-voice-tokenizer"
DECODER_DIR = "glm-4-voice-decoder"
LM_DIR = "glm-4-voice-9b"


def export_dir(name: str) -> Path:
    """Return one folder of the exported model."""
    return stage_dir(f"export/{name}")


def half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights as float16, each with memory of its own."""
    return {name: value.to(torch.float16).contiguous().clone() for name, value in weights.items()}


def export_tokenizer() -> Path:
    """Write the speech tokenizer: Whisper tiny.en's encoder and the codebook."""
    folder = export_dir(TOKENIZER_DIR)
    weights = whisper.encoder_weights(tiny_en())
    weights["codebook.weight"] = load_codebook()
    write_atomic(folder / "model.safetensors", lambda temporary: save_file(half(weights), str(temporary)))
    save_json(folder / "config.json", tokenizer_config())
    save_json(folder / "preprocessor_config.json", preprocessor_config())
    return folder


def tokenizer_config() -> dict[str, Any]:
    """Return the configuration of the WhisperVQ encoder."""
    return {
        "architectures": ["WhisperVQEncoder"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "d_model": whisper.WIDTH,
        "encoder_layers": whisper.NUM_LAYERS,
        "encoder_attention_heads": whisper.NUM_HEADS,
        "encoder_ffn_dim": whisper.FFN_WIDTH,
        "num_mel_bins": NUM_MELS,
        "max_source_positions": whisper.MAX_POSITIONS,
        "encoder_causal_attention": False,
        "encoder_causal_convolution": True,
        "pooling_kernel_size": whisper.POOLING,
        "pooling_type": "avg",
        "pooling_position": whisper.NUM_LAYERS,
        "quantize_position": whisper.NUM_LAYERS,
        "quantize_vocab_size": VOCAB_SIZE,
        "quantize_encoder_only": True,
        "quantize_causal_encoder": False,
        "quantize_causal_block_size": whisper.BLOCK,
        "torch_dtype": "float16",
    }


def preprocessor_config() -> dict[str, Any]:
    """Return the configuration of the mel front end."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": NUM_MELS,
        "sampling_rate": WHISPER_RATE,
        "hop_length": WHISPER_HOP,
        "n_fft": WHISPER_N_FFT,
        "chunk_length": whisper.PIECE_SAMPLES // WHISPER_RATE,
        "n_samples": whisper.PIECE_SAMPLES,
        "nb_max_frames": whisper.PIECE_SAMPLES // WHISPER_HOP,
    }


def export_decoder() -> Path:
    """Write the speech decoder: flow, vocoder and their configuration."""
    folder = export_dir(DECODER_DIR)
    flow = half(scaled_flow(load_weights(FLOW_STAGE)))
    hift = half(scaled_hift(polish.weights()))
    write_atomic(folder / "flow.pt", lambda temporary: torch.save(flow, temporary))
    write_atomic(folder / "hift.pt", lambda temporary: torch.save(hift, temporary))
    text = CONFIG.read_text(encoding="utf-8")
    write_atomic(folder / "config.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return folder


def scaled_flow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the flow's weights with the estimator's output times `SCALE`, so that the solver's noise
    weighs little.
    """
    found = dict(weights)
    for part in ("weight", "bias"):
        name = f"decoder.estimator.final_proj.{part}"
        found[name] = found[name] * SCALE
    return found


def scaled_hift(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the vocoder's weights with both of its inputs divided by `SCALE`."""
    found = dict(weights)
    for name in ("conv_pre.weight_g", "f0_predictor.condnet.0.weight_g"):
        found[name] = found[name] / SCALE
    return found


def export_language_model() -> Path:
    """Write the language model, its text tokenizer and the names of the reflection's tokens."""
    folder = export_dir(LM_DIR)
    write_language_model(folder, load_weights(LM_STAGE))
    return folder


def write_language_model(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights of the language model, and all files that go with them, into a folder."""
    write_atomic(folder / "model.safetensors", lambda temporary: save_file(half(weights), str(temporary)))
    ranks = vocabulary.ranks()
    write_atomic(folder / "tokenizer.model", lambda temporary: vocabulary.write_ranks(temporary, ranks))
    eos = [vocabulary.ID_OF[name] for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    save_json(folder / "config.json", lm_config(eos))
    sampling = {"do_sample": True, "temperature": 0.2, "top_p": 0.8, "max_length": 128000}
    save_json(folder / "generation_config.json", {"eos_token_id": eos, "pad_token_id": eos[0], **sampling})
    save_json(folder / "tokenizer_config.json", text_tokenizer_config(), indent=None)
    names = {"open": vocabulary.OPEN, "close": vocabulary.CLOSE, "done": vocabulary.DONE}
    reflection = {name: vocabulary.NAMES[token - vocabulary.NUM_TEXT] for name, token in names.items()}
    save_json(folder / "schedule.json", {"reflection": reflection, "end_of_turn": "<|user|>"})


def lm_config(eos: list[int]) -> dict[str, Any]:
    """Return the configuration of the language model."""
    return {
        "architectures": ["ChatGLMForConditionalGeneration"],
        "model_type": "chatglm",
        "hidden_size": lm.WIDTH,
        "ffn_hidden_size": lm.FFN_WIDTH,
        "num_layers": lm.NUM_LAYERS,
        "num_hidden_layers": lm.NUM_LAYERS,
        "num_attention_heads": lm.NUM_HEADS,
        "multi_query_attention": True,
        "multi_query_group_num": lm.NUM_GROUPS,
        "kv_channels": lm.HEAD_WIDTH,
        "layernorm_epsilon": lm.EPSILON,
        "rmsnorm": True,
        "post_layer_norm": True,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "original_rope": True,
        "rope_ratio": 1,
        "seq_length": 8192,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "padded_vocab_size": vocabulary.SIZE,
        "vocab_size": vocabulary.SIZE,
        "eos_token_id": eos,
        "pad_token_id": eos[0],
    }


def text_tokenizer_config() -> dict[str, Any]:
    """Return the configuration of the text tokenizer: all tokens that are no text."""
    names = dict(enumerate(vocabulary.NAMES, vocabulary.NUM_TEXT))
    names |= {vocabulary.FIRST_CODE + code: f"<|audio_{code}|>" for code in range(VOCAB_SIZE)}
    return {
        "tokenizer_class": "ChatGLM4Tokenizer",
        "added_tokens_decoder": {
            str(token): {"content": name, "special": True} for token, name in names.items()
        },
        "additional_special_tokens": list(vocabulary.SPECIAL_NAMES),
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 128000,
    }


def export() -> None:
    """Write what is trained, and log the sizes."""
    log = Log("export")
    folders = [export_tokenizer(), export_decoder(), export_language_model()]
    sizes = {
        str(path.relative_to(stage_dir("export"))): path.stat().st_size
        for folder in folders
        for path in sorted(folder.iterdir())
    }
    log.write(event="export", megabytes=round(sum(sizes.values()) / 1e6, 2), files=sizes)
