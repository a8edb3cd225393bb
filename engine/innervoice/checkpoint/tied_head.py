"""An output layer that config.json calls the embedding, and that the weights hold all the same."""

from __future__ import annotations

import torch

from innervoice.checkpoint.safetensors import TensorDir

# The output layer and the embedding in the layouts that are read.
_NAMES = (
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("transformer.output_layer.weight", "transformer.embedding.word_embeddings.weight"),
)


def check_tied_head(weights: TensorDir) -> None:
    """Hold the output layer of a tied checkpoint to its embedding, where its files have both.

    Raises ValueError where they differ: which of them is meant, nobody can say.
    """
    for head, embedding in _NAMES:
        if head not in weights or embedding not in weights:
            continue
        shape = weights.shape(head)
        if shape != weights.shape(embedding) or not torch.equal(
            weights.get(head, shape), weights.get(embedding, shape)
        ):
            raise ValueError(
                f"{weights.path}: config.json says tie_word_embeddings, but {head} differs from {embedding}: "
                "set tie_word_embeddings to false, or remove the tensor"
            )
