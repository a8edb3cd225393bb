"""One list of cases an op, shared by the tests and the bench, and the rule by
which an implementation is right.

OPS holds every op by name. CASES are small and meant for tests; an op's `real` cases
have the shapes of GLM-4-Voice.

case.py             what a case and an op are
experts.py          cases of a mixture of experts
language.py         cases of the language model's ops
paged.py            cases of attention over pages, and of pages of fp8
quantised.py        cases of products with quantised weights
residual_vq.py      cases of the residual-VQ codecs' ops
rule.py             the error rule
sampling.py         cases of sampling
speech_codec.py     cases of the codec's ops
speech_networks.py  cases of the networks of flow and vocoder
"""

from __future__ import annotations

from collections.abc import Mapping

from innervoice_kernels.testing import experts, language, paged, quantised, sampling
from innervoice_kernels.testing import residual_vq as codecs
from innervoice_kernels.testing import speech_codec as speech
from innervoice_kernels.testing import speech_networks as codec
from innervoice_kernels.testing.case import Case, DeviceName, Inputs, Maker, Op, fresh, normal
from innervoice_kernels.testing.rule import check, errors

__all__ = [
    "CASES",
    "OPS",
    "Case",
    "DeviceName",
    "Inputs",
    "Maker",
    "Op",
    "check",
    "errors",
    "fresh",
    "normal",
]

_PARTS = (language, experts, paged, quantised, sampling, speech, codec, codecs)
OPS: Mapping[str, Op] = {op.name: op for part in _PARTS for op in part.OPS}
CASES: Mapping[str, tuple[Case, ...]] = {name: op.cases for name, op in OPS.items()}
