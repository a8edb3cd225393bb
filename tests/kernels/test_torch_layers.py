"""Float32 is multiplied as such: no convolution and no LSTM goes where cuDNN may round it to TF32."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from paths import ROOT
from small_codec import MEL, random_codes, small_decoder, small_flow, speak
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from innervoice_kernels import torch_layers
from innervoice_kernels.backend import use
from innervoice_kernels.testing import OPS

ROUNDING = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "convolution", "lstm", "gru"}
)
# Its own file, and a model that runs on the CPU alone.
EXEMPT = frozenset({"torch_layers.py", "silero.py"})


def calls(source: str) -> Iterator[str]:
    """Names of the layers that are called as attributes of torch, of its functions or of its modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            name = node.func.attr
            if owner in ("torch", "F", "nn", "torch.nn", "torch.nn.functional", "torch.ops.aten") and (
                name in ROUNDING or name.lower() in ROUNDING
            ):
                yield name


def test_torch_s_own_layers_are_called_nowhere_else() -> None:
    planted = "y = F.conv1d(x, w) + torch.lstm(x)\nz = nn.Conv1d(3, 4, 5)\nown.conv2d(x)"
    assert sorted(calls(planted)) == ["Conv1d", "conv1d", "lstm"]
    found = {
        (path.name, name)
        for folder in ("engine", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in EXEMPT
        for name in calls(path.read_text(encoding="utf-8"))
    }
    assert found == set()


class Convolutions(TorchDispatchMode):
    """Keeps, of every convolution, its name, its type and whether float32 may be rounded in it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ROUNDING:
            self.seen.append((name, args[0].dtype, args[0].dtype == torch.float32))
        elif name == "_convolution":
            self.seen.append((name, args[0].dtype, bool(args[12])))
        return func(*args, **(kwargs or {}))


CONVOLVING = (
    "flow_stage",
    "frame_conv",
    "stream_conv",
    "whole_conv",
    "stream_residual",
    "apply_taps",
    "elu_unit",
)


@pytest.mark.parametrize("name", CONVOLVING)
def test_references_of_ops_round_nothing(name: str) -> None:
    op, mode = OPS[name], Convolutions()
    for case in op.cases:
        inputs = case.make_inputs(torch.float32, "cpu", torch.Generator().manual_seed(0))
        with torch.inference_mode(), mode:
            op.ref(**inputs)
    assert mode.seen and not any(may_round for _, _, may_round in mode.seen)


def flow_step() -> None:
    """A solver step of the flow by torch's own operations, and the length regulator of a whole reply."""
    flow = small_flow()
    x, mu = torch.randn(2, 1, MEL, 24)
    flow.solve(x, mu, mu[..., 0], torch.zeros_like(mu), 1)
    flow.mu(torch.tensor(random_codes(12, seed=1)))


def spoken() -> None:
    """A reply in chunks: flow, vocoder and what lies between."""
    speak(small_decoder().steady(num_slots=1), random_codes(40, seed=2), [40])


@pytest.mark.parametrize("run", [flow_step, spoken])
def test_speech_out_rounds_nothing(run: Callable[[], None]) -> None:
    with use("ref"), torch.inference_mode(), Convolutions() as mode:
        run()
    assert {name for name, dtype, _ in mode.seen if dtype == torch.float32} == {"_convolution"}
    assert not any(may_round for _, _, may_round in mode.seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_convolutions_are_torch_s(dtype: torch.dtype) -> None:
    """Bit for bit, whatever stride, padding, dilation and groups."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    x, bias = normal(2, 6, 19), normal(4)
    for stride, padding, dilation, groups in ((1, 0, 1, 1), (2, 1, 1, 2), (1, 4, 3, 1), (3, 2, 2, 2)):
        w = normal(4, 6 // groups, 3)
        made = torch_layers.conv1d(x, w, bias, stride, padding, dilation, groups)
        assert torch.equal(made, F.conv1d(x, w, bias, stride, padding, dilation, groups))
    w = normal(6, 4, 5)
    for stride, padding in ((1, 0), (3, 2)):
        made = torch_layers.conv_transpose1d(x, w, None, stride, padding)
        assert torch.equal(made, F.conv_transpose1d(x, w, None, stride, padding))
    image, w = normal(2, 3, 9, 8), normal(4, 3, 3, 3)
    assert torch.equal(torch_layers.conv2d(image, w, bias, 2, 1), F.conv2d(image, w, bias, 2, 1))


@pytest.mark.parametrize("packed", [False, True])
def test_an_lstm_on_a_gpu_multiplies_in_float64(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    generator = torch.Generator().manual_seed(6)
    weights = [torch.randn(shape, generator=generator) / 4 for shape in [(32, 8), (32, 8), (32,), (32,)] * 2]
    state = (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))
    x, sizes = torch.randn(3, 5, 8, generator=generator), None
    if packed:
        x, sizes = x.flatten(0, 1)[:11], torch.tensor([3, 3, 3, 2])
    expected = torch_layers.lstm(x, state, weights, sizes)
    assert torch_layers._may_round(x) is False  # on a CPU
    real, kinds = torch.lstm, []
    monkeypatch.setattr(torch_layers, "_may_round", lambda x: True)
    monkeypatch.setattr(torch, "lstm", lambda x, *rest: kinds.append(x.dtype) or real(x, *rest))
    made = torch_layers.lstm(x, state, weights, sizes)
    assert kinds == [torch.float64]
    for one, other in zip(made, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
