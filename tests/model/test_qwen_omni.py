"""The thinkers of Qwen3-Omni and Qwen2.5-Omni against transformers' own, with random weights in the shipped layout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from omni_models import KINDS, SIZES, save, thinker
from rows import Rows, greedy

from innervoice.checkpoint.files import read_json
from innervoice.checkpoint.safetensors import TensorDir
from innervoice.model.families import family_of
from innervoice.model.transformer import Transformer

LENGTH, PREFILL = 33, 20


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_ids_equal_transformers(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = thinker(kind)
    save(theirs, kind, tmp_path)
    source = tmp_path / "config.json"
    family = family_of(read_json(source), source)
    config = family.read_config(read_json(source), source)
    with caplog.at_level(logging.INFO, logger="innervoice"):
        model = Transformer(config, family.load_weights(config, TensorDir(tmp_path), torch.float32, "cpu"))
    assert caplog.text.count("vision, talker and wave parts are skipped") == 1
    assert (config.num_experts, config.qkv_bias) == ((8, False) if kind == "qwen3_omni_moe" else (0, True))
    ids = torch.randint(0, 180, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    assert expected.std() > 1
    whole = torch.stack(Rows(model, 2, LENGTH).step(ids.tolist()))
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-4)
    # Cached and in pieces, each row alone.
    for row, given in zip(whole, ids.tolist(), strict=True):
        rows = Rows(model, 1, LENGTH)
        parts = [rows.step([given[:PREFILL]])[0], *(rows.step([[i]])[0] for i in given[PREFILL:])]
        torch.testing.assert_close(torch.cat(parts), row, rtol=0, atol=1e-4)
    # The ids that the reference draws, its logits computed anew for each.
    text = ids[0, :5].tolist()
    with torch.inference_mode():
        for _ in range(6):
            fed = torch.tensor([text])
            made = theirs(input_ids=fed, attention_mask=torch.ones_like(fed), use_cache=False).logits
            text.append(int(made[0, -1].argmax()))
    assert greedy(Rows(model, 1, 20), [text[:5]], 6) == [text[5:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_bias": True},
            "thinker_config.text_config: attention_bias is True, which is not supported",
        ),
        ({"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8"),
        ({"use_qk_norm": False}, "use_qk_norm is False, which is not supported; supported is True"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, more than the 8 of num_experts"),
    ],
)
def test_unsupported_settings_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    text = SIZES | {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
    data = {
        "model_type": KINDS[0],
        "thinker_config": {"text_config": text | {"rms_norm_eps": 1e-6} | changes},
    }
    with pytest.raises(ValueError) as error:  # noqa: PT011
        family_of(data, "config.json").read_config(data, "config.json")
    assert message in str(error.value)


def test_a_config_without_its_thinker_is_refused() -> None:
    with pytest.raises(ValueError, match="key 'thinker_config' is missing"):
        family_of({"model_type": KINDS[1]}, "config.json").read_config(
            {"model_type": KINDS[1]}, "config.json"
        )


SHIPPED: dict[str, Any] = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "mlp_only_layers": [],
    "decoder_sparse_step": 1, "max_position_embeddings": 65536, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_parameters_of_the_published_sizes() -> None:
    """Qwen3-30B-A3B has 30,532,122,624 parameters by its index; the thinker's table and head have 128 ids more."""
    alone = family_of(SHIPPED, "config.json").read_config(SHIPPED, "config.json")
    assert alone.num_parameters == 30_532_122_624
    assert alone.weight_bytes() == 2 * alone.num_parameters
    axes = {
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
        "rope_type": "default",
        "type": "default",
    }
    text = SHIPPED | {"vocab_size": 152064, "rope_theta": None, "rope_parameters": axes | {"rope_theta": 1e6}}
    whole = {"model_type": KINDS[0], "thinker_config": {"text_config": text}}
    omni = family_of(whole, "config.json").read_config(whole, "config.json")
    assert omni.num_parameters == alone.num_parameters + 2 * 128 * 2048
    assert (omni.rope_theta, omni.rope_scaling, omni.num_used_experts) == (1e6, None, 8)
