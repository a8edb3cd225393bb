"""Model families: which code reads a checkpoint, chosen by its config.json.

glm.py                   GLM-4 (text)
glm4_voice.py            GLM-4-Voice: config, prompt
glm4_voice_weights.py    its tensors
hugging_face.py          config and prompt of the families in Hugging Face's layout
hugging_face_weights.py  their tensors
llama.py                 Llama, Qwen2, Qwen3, Qwen3-MoE
qwen_omni.py             the thinkers of Qwen3-Omni and Qwen2.5-Omni

The modules of weights, which import torch, are imported when weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from innervoice.checkpoint.audio_encoder import AudioEncoderConfig
from innervoice.checkpoint.model_config import ModelConfig
from innervoice.model.families import glm, glm4_voice, llama, qwen_omni
from innervoice.model.text import ChatMessage, TextTokenizer
from innervoice.model.text.dialogue import DialogueItem
from innervoice.types import Vocabulary

if TYPE_CHECKING:
    import torch

    from innervoice.checkpoint.safetensors import TensorSource
    from innervoice.model.weights import ModelWeights


class Family(Protocol):
    """The members that a family module offers."""

    NAME: str
    MODEL_TYPES: tuple[str, ...]

    def read_config(self, data: Mapping[str, Any], source: str | PathLike[str]) -> ModelConfig:
        """config.json as ModelConfig. Raises ValueError for a setting that the family does not run."""
        ...

    def read_audio_encoder(
        self, data: Mapping[str, Any], source: str | PathLike[str]
    ) -> AudioEncoderConfig | None:
        """The encoder by which the model hears, from config.json; None: it hears by a speech tokenizer or not at all.

        Raises ValueError for a setting that is not run.
        """
        ...

    def load_weights(
        self, config: ModelConfig, tensors: TensorSource, dtype: torch.dtype, device: str | torch.device
    ) -> ModelWeights:
        """All weights, tensor by tensor. Raises ValueError for a tensor that is missing or misshapen."""
        ...

    def load_text(
        self, directory: str | PathLike[str], num_codes: int | None, *, stand_in: bool = False
    ) -> tuple[TextTokenizer, Vocabulary]:
        """The tokenizer, and which ids mean what; num_codes: size of the speech
        tokenizer's codebook, None without one.

        stand_in: where the tokenizer's files are missing, make up one of the right size. Raises
        FileNotFoundError, ValueError.
        """
        ...

    def turn_ids(
        self,
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        user: str | Sequence[int],
        system: str | None = None,
        *,
        first: bool,
        variables: Mapping[str, Any] | None = None,
        earlier: Sequence[ChatMessage] | None = None,
    ) -> list[int]:
        """The ids that one user turn, text or speech codes, adds to a dialogue, up to where the reply begins.

        first: the whole opening, with the system text; system None: the model's own. Otherwise what comes
        between the reply before and the next one: the history holds that reply's ids as they were drawn,
        without its end of turn, which these ids begin with where the template has one. Give the same system
        at every turn. variables: of a chat template, by name. earlier: what was said so far, against which
        the turn is checked; None: not known. Raises ValueError, also for variables that the template does
        not read.
        """
        ...

    def turn_head_ids(
        self,
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        codes: Sequence[int],
        system: str | None = None,
        *,
        first: bool,
    ) -> list[int]:
        """The common prefix of `turn_ids` for all recordings that begin with these codes.

        Raises ValueError, as it does.
        """
        ...

    def default_system(self, vocabulary: Vocabulary, items: Sequence[DialogueItem]) -> str | None:
        """The system text of a dialogue that is given none; None: it begins with one, or the template has its
        own.
        """
        ...

    def dialogue_runs(
        self,
        tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        items: Sequence[DialogueItem],
        head: str | None = None,
        *,
        opens: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[list[int]]:
        """The ids before, between and behind the replies among the items, whose own tokens are not in them.

        head: the system text before the items, None: none. opens: up to where the next reply begins.
        variables: of a chat template, by name. Raises ValueError for items that the template does not take.
        """
        ...


FAMILIES: tuple[Family, ...] = (glm4_voice, llama, qwen_omni, glm)


def family_of(data: Mapping[str, Any], source: str | PathLike[str]) -> Family:
    """The family that runs this config.json. Raises ValueError naming what is supported."""
    kind = data.get("model_type")
    for family in FAMILIES:
        if kind in family.MODEL_TYPES:
            return family
    supported = ", ".join(repr(name) for family in FAMILIES for name in family.MODEL_TYPES)
    raise ValueError(
        f"{source}: model_type {kind!r} is not a language model of a supported type: expected {supported}"
    )
