"""One list of cases an op, shared by the tests and the bench, and the rule by which an implementation is right.

OPS holds every op by name. CASES are small and meant for tests; an op's `real` cases have the shapes of GLM-4-Voice.
"""

from __future__ import annotations

from collections.abc import Mapping

from innervoice_kernels.testing import codec, codecs, language, quantised, sampling, speech
from innervoice_kernels.testing.case import Case, Device, Inputs, Maker, Op, fresh, normal
from innervoice_kernels.testing.rule import check, errors

__all__ = ["CASES", "OPS", "Case", "Device", "Inputs", "Maker", "Op", "check", "errors", "fresh", "normal"]

_PARTS = (language, quantised, sampling, speech, codec, codecs)
OPS: Mapping[str, Op] = {op.name: op for part in _PARTS for op in part.OPS}
CASES: Mapping[str, tuple[Case, ...]] = {name: op.cases for name, op in OPS.items()}
