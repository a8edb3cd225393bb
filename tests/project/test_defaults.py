"""Tensors name their dtype and their device: torch's defaults belong to the process, and any thread may change them."""

from __future__ import annotations

import ast

import pytest
from paths import ENGINE, KERNELS, ROOT
from source_tree import modules

# Functions of torch that fill in a dtype or a device that is left out.
FACTORIES = """
    arange as_tensor asarray bartlett_window blackman_window empty empty_permuted empty_strided eye full
    hamming_window hann_window kaiser_window linspace logspace normal ones rand randint randn randperm range
    scalar_tensor tensor tril_indices triu_indices zeros
    Parameter Linear Embedding Conv1d Conv2d ConvTranspose1d LSTM LayerNorm RMSNorm
"""
NAMES = frozenset(FACTORIES.split())


def is_of_torch(function: ast.expr) -> bool:
    """Whether an expression is torch.NAME, nn.NAME or torch.nn.NAME."""
    if not isinstance(function, ast.Attribute) or function.attr not in NAMES:
        return False
    owner = function.value
    named = (
        owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    )
    return named in ("torch", "nn")


def unnamed(source: str) -> list[str]:
    """The calls in a source that make a tensor without its dtype or its device."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [call for call in calls if is_of_torch(call.func)]
    return [
        f"{call.lineno}: {ast.unparse(call)}"
        for call in made
        if not {"dtype", "device"} <= {keyword.arg for keyword in call.keywords}
    ]


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.zeros(3)", 1),
        ("torch.zeros(3, dtype=torch.int64)", 1),
        ("torch.zeros(3, device='cpu')", 1),
        ("torch.nn.Linear(3, 4)", 1),
        ("torch.zeros(3, dtype=x.dtype, device=x.device)", 0),
        ("torch.zeros_like(x)\nx.new_zeros(3)\nnp.zeros(3)", 0),
    ],
)
def test_a_tensor_without_its_dtype_is_found(source: str, count: int) -> None:
    assert len(unnamed(source)) == count


def test_every_tensor_names_its_dtype_and_device() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in modules(ENGINE) + modules(KERNELS)
        if (names := unnamed(path.read_text(encoding="utf-8")))
    }
    assert found == {}
