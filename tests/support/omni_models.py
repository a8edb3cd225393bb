"""Small thinkers of Qwen3-Omni and Qwen2.5-Omni by transformers' own classes, as checkpoints that hear and talk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chat_files
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("transformers")

VOCAB = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
AUDIO: dict[str, Any] = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 8, "output_dim": 64,
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_heads": 1,
    "out_hidden_size": 64,
}
MARKS = ("audio", "image", "video", "audio_start", "audio_end", "vision_start", "vision_end")
SHARDS = 15
KINDS = ("qwen3_omni_moe", "qwen2_5_omni")


def thinker(kind: str, first_mark: int = 190, audio: dict[str, Any] | None = None, **text_sizes: Any) -> Any:
    """transformers' thinker, its weights wide enough that every part of it shows in the logits.

    first_mark: the ids of MARKS begin there. audio: of the encoder's config; text_sizes: of the text's.
    """
    ids = {f"{name}_token_id": first_mark + i for i, name in enumerate(MARKS)}
    heard = audio or AUDIO
    sizes = SIZES | text_sizes
    if kind == "qwen3_omni_moe":
        from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2], "interleaved": True}
        text = sizes | {
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
        }
        vision = VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        config = configs.Qwen3OmniMoeThinkerConfig(
            audio_config={"downsample_hidden_size": 4} | heard,
            vision_config=vision,
            text_config=text | {"rope_parameters": rope},
            **ids,
        )
        model = models.Qwen3OmniMoeThinkerForConditionalGeneration(config)
    else:
        from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as configs
        from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as models

        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
        config = configs.Qwen2_5OmniThinkerConfig(
            audio_config=heard,
            vision_config=VISION | {"fullatt_block_indexes": [0]},
            text_config=sizes | {"rope_parameters": rope, "tie_word_embeddings": False},
            **{name.replace("token_id", "token_index"): ids.pop(name) for name in list(ids)[:3]},
            **ids,
        )
        model = models.Qwen2_5OmniThinkerForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        if "audio_tower" in name and heard is not AUDIO:
            size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.data = size * random + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            parameter.data = random * (1 if parameter.ndim == 1 else 0.15)
    return model.eval()


def save(model: Any, kind: str, folder: Path) -> None:
    """The thinker as the whole checkpoint holds it: its names behind a prefix, its config in a section."""
    model.save_pretrained(folder / "thinker", max_shard_size="100KB")
    tensors = {}
    for file in (folder / "thinker").glob("*.safetensors"):
        tensors |= {f"thinker.{name}": x for name, x in load_file(file).items()}
    tensors |= {
        f"{part}.weight": torch.full((2, 2), torch.nan)
        for part in ("talker.codec_head", "code2wav.decoder.0")
    }
    names = sorted(tensors)
    shards = {f"model-{n + 1:05}-of-{SHARDS:05}.safetensors": names[n::SHARDS] for n in range(SHARDS)}
    for file_name, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file_name)
    where = {name: file_name for file_name, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    section = json.loads((folder / "thinker" / "config.json").read_text())
    whole = {"model_type": kind, "thinker_config": section, "talker_config": {}, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(whole))


HEARS: dict[str, dict[str, Any]] = {
    kind: {
        "num_mel_bins": 128, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "d_model": 32,
        "output_dim": 64, "max_source_positions": 1500, **own,
    }
    for kind, own in zip(
        KINDS, ({"n_window": 50, "n_window_infer": 200, "downsample_hidden_size": 8}, {"n_window": 100}), strict=True
    )
}  # fmt: skip
NAMES: dict[str, tuple[str, ...]] = {
    KINDS[0]: ("<|audio_pad|>", "<|image_pad|>", "<|video_pad|>", "<|audio_start|>", "<|audio_end|>"),
    KINDS[1]: ("<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>", "<|audio_bos|>", "<|audio_eos|>"),
}
"""The tokens of the first of MARKS."""
TEMPLATE = """
{%- for message in messages %}
    {%- if SYSTEM and loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}{{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'audio' %}{{- 'BEGIN' + 'ROW' + 'END' }}{% else %}{{- part.text }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""


class Spoken:
    """A checkpoint directory that hears, with transformers' own thinker and tokenizer for it."""

    def __init__(self, folder: Path, kind: str, **text_sizes: Any) -> None:
        row, _, _, begin, end = NAMES[kind]
        template = TEMPLATE.replace("SYSTEM", "true" if kind == KINDS[1] else "false")
        for word, token in (("BEGIN", begin), ("ROW", row), ("END", end)):
            template = template.replace(word, token)
        special = (*chat_files.SHAPES["chatml"]["special"], *NAMES[kind])
        shape = chat_files.SHAPES["chatml"] | {"special": special, "template": template}
        self.kind, self.folder = kind, folder
        self.tokenizer = chat_files.save(folder, "chatml", shape=shape)
        first = self.tokenizer.convert_tokens_to_ids(row)
        sizes = {"vocab_size": 512, "max_position_embeddings": 4096, "eos_token_id": [0, 2]} | text_sizes
        self.model = thinker(kind, first, HEARS[kind], **sizes)
        save(self.model, kind, folder)

    def rows(self, samples: np.ndarray) -> Tensor:
        """The reference's encoder rows of one recording at 16 kHz."""
        from transformers import WhisperFeatureExtractor

        given = WhisperFeatureExtractor(feature_size=128, chunk_length=30)(
            [samples], sampling_rate=16000, padding=True if self.kind == KINDS[0] else "max_length",
            truncation=False, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        mel = given.input_features[0, :, : int(given.attention_mask.sum())]
        with torch.inference_mode():
            found: Tensor = self.model.model.audio_tower(
                mel, feature_lens=torch.tensor([mel.shape[1]])
            ).last_hidden_state
        return found

    def prompt(self, messages: list[dict[str, Any]]) -> list[int]:
        """The template's ids of messages, with one id in place of each recording."""
        made: list[int] = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return made

    def embedded(self, ids: list[int], recordings: list[np.ndarray]) -> Tensor:
        """Embeddings [T, D] of ids in which one id stands for each recording, whose rows take its place."""
        row = self.tokenizer.convert_tokens_to_ids(NAMES[self.kind][0])
        table, left = self.model.get_input_embeddings().weight.detach(), iter(recordings)
        return torch.cat([self.rows(next(left)) if i == row else table[[i]] for i in ids])

    def states(self, ids: list[int], recordings: list[np.ndarray]) -> tuple[Tensor, ...]:
        """The reference's hidden states [T, D] of such a prompt: embeddings, behind each layer, the last after the norm."""
        return tuple(one[0] for one in self._fed(ids, recordings).hidden_states)

    def logits(self, ids: list[int], recordings: list[np.ndarray]) -> Tensor:
        """The reference's logits [T, V] of such a prompt."""
        found: Tensor = self._fed(ids, recordings).logits[0]
        return found

    def _fed(self, ids: list[int], recordings: list[np.ndarray]) -> Any:
        x = self.embedded(ids, recordings)[None]
        places = torch.arange(x.shape[1])[None, None].expand(3, 1, -1)
        ones = torch.ones(1, x.shape[1], dtype=torch.int64)
        with torch.inference_mode():
            return self.model(
                inputs_embeds=x,
                attention_mask=ones,
                position_ids=places,
                use_cache=False,
                output_hidden_states=True,
            )

    def greedy(self, ids: list[int], recordings: list[np.ndarray], num: int) -> list[int]:
        """The reference's likeliest ids behind such a prompt."""
        x = self.embedded(ids, recordings)[None]
        table, made = self.model.get_input_embeddings().weight.detach(), list[int]()
        kept, num_fed = None, 0
        with torch.inference_mode():
            for _ in range(num):
                places = torch.arange(num_fed, num_fed + x.shape[1])[None, None].expand(3, 1, -1)
                num_fed += x.shape[1]
                given = self.model(
                    inputs_embeds=x,
                    attention_mask=torch.ones(1, num_fed, dtype=torch.int64),
                    position_ids=places,
                    past_key_values=kept,
                    use_cache=True,
                )
                kept = given.past_key_values
                made.append(int(given.logits[0, -1].argmax()))
                x = table[made[-1]].view(1, 1, -1)
        return made


def sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """A recording at 16 kHz that is like no other."""
    time = np.arange(num_samples) / 16000
    noise = np.random.default_rng(num_samples + 7919 * seed).standard_normal(num_samples)
    tone = np.sin(2 * np.pi * (180 + 37 * seed) * time) * np.cos((2 + seed) * time)
    return (0.3 * tone + 0.01 * noise).astype(np.float32)
