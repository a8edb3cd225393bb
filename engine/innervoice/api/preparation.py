"""All that the files of config and tokenizer say of a model: known, and refused, before weights are read, and most of
it before torch is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from innervoice.api.configs import Configs, longest_sequence, quantization_of, read_configs
from innervoice.api.options import EngineOptions
from innervoice.api.request_builder import RequestBuilder, RequestOptions
from innervoice.checkpoint.locate import CheckpointPaths
from innervoice.checkpoint.model_config import read_generation_config
from innervoice.model.text import check_variables
from innervoice.types import Ids, Prompt, Text

if TYPE_CHECKING:
    from innervoice.api.memory_plan import MemoryPlan
    from innervoice.model.gguf_source import GgufSource


@dataclass(frozen=True)
class Prepared:
    """A model that can be loaded. requests: without a speech tokenizer and a sample rate, which loading adds."""

    paths: CheckpointPaths
    options: EngineOptions
    configs: Configs
    requests: RequestBuilder

    @cached_property
    def plan(self) -> MemoryPlan:
        """The memory plan.

        Raises ValueError for a device or a type that is not there, OutOfCapacity when the model does not fit.
        """
        from innervoice.api.capacity import check_fits
        from innervoice.api.memory_plan import plan_memory

        made = plan_memory(self.paths, self.configs, self.options, self.gguf)
        check_fits(made, self.options.max_sessions)
        return made

    @cached_property
    def gguf(self) -> GgufSource | None:
        """The weights of a model that is a GGUF file; None: it is not. Raises ValueError."""
        from innervoice.api.memory_plan import gguf_of

        return gguf_of(self.paths)

    def check(self, prompt: Prompt | None, **request: Any) -> None:
        """Refuse a request that the loaded engine would refuse; of a recording for a model that hears, all but
        its length.

        request: as for `Engine.stream`; prompt None: any. Raises ValueError, FileNotFoundError, TypeError.
        """
        hears = self.paths.speech_tokenizer is not None or self.configs.encoder is not None
        is_heard = hears and not isinstance(prompt, Text | Ids)
        self.requests.request(None if is_heard else prompt, RequestOptions().changed(**request), 0.0)


def prepare(model: str | PathLike[str], options: EngineOptions) -> Prepared:
    """Find a model, and read its files of config and tokenizer.

    Raises FileNotFoundError, ValueError for what is not supported.
    """
    paths = options.locate(model)
    configs = read_configs(paths)
    model_len = longest_sequence(options.max_model_len, configs.model)
    quantization_of(paths, configs, options.quantization)
    # A dummy model may come without tokenizer files: it then gets a stand-in of the right size.
    tokenizer, vocabulary = configs.family.load_text(
        paths.model, configs.num_codes, stand_in=options.load_format == "dummy"
    )
    check_variables(tokenizer, options.template or {})
    requests = RequestBuilder(
        family=configs.family,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        generation=read_generation_config(paths.model),
        speech_tokenizer=None,
        max_model_len=model_len,
        sample_rate=0,
        event_fields=options.event_fields,
        template=options.template or {},
        hidden_size=configs.model.hidden_size,
    )
    return Prepared(paths, options, configs, requests)
