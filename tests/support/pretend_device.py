"""Torch's meta device as if it were a GPU: what is read from it is 0 or true, and what the host launches, copies and waits
for is counted. Triton's own specialisation says which kernels would be compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from innervoice_kernels.jit import Launch

# What launches nothing: views, and memory that is handed out.
VIEWS = {
    "view", "slice", "select", "t", "transpose", "empty", "detach", "expand", "unsqueeze", "squeeze", "_unsafe_view",
    "split", "split_with_sizes", "unbind", "as_strided", "permute", "alias", "empty_strided", "unfold", "_reshape_alias",
    "new_empty", "empty_like", "unflatten", "is_same_size", "lift_fresh", "new_empty_strided", "diagonal", "view_as",
}  # fmt: skip
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"}


class _Tensors(TorchFunctionMode):
    """Notes torch.tensor(numbers, device=...), which no dispatcher sees: a copy from memory that is not handed over."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and made.is_meta:
            self._waits.append(f"tensor of host numbers {tuple(made.shape)}")
        return made


class PretendDevice(TorchDispatchMode):
    """Within, tensors on "meta" count as those of a device that works beside the host.

    launched: operations by name, without those that a custom kernel stands for. waits: what stops the host until the
    device is done: reads, and copies from memory that is not handed over. uploads: copies that do not wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.waits: list[str] = []
        self.uploads = 0
        self._tensors = _Tensors(self.waits)

    def __enter__(self) -> PretendDevice:
        self._tensors.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tensors.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with _Inner(self):  # what inference mode hands over whole, such as Tensor.to
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        name = func.__name__.split(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        is_there = any(x.is_meta for x in tensors)
        if name in READS and is_there:
            self.waits.append(name)
            return True if tensors[0].dtype == torch.bool else tensors[0].new_zeros((), device="cpu").item()
        if name in ("_to_copy", "copy_"):
            return self._copied(func, name, args, kwargs)
        made = func(*args, **kwargs)
        if name not in VIEWS and any(
            isinstance(x, Tensor) and x.is_meta and x.numel() for x in tree_leaves(made)
        ):
            self.launched[name] += 1
        return made

    def _copied(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        source = args[1] if name == "copy_" else args[0]
        goes_there = (
            args[0].is_meta if name == "copy_" else str(kwargs.get("device", source.device)) == "meta"
        )
        if source.is_meta and not goes_there:
            self.waits.append(f"read of {tuple(source.shape)}")
            if name == "copy_":
                return args[0].zero_()
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device="cpu")
        if goes_there and not source.is_meta:
            is_waited_for = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if is_waited_for and source.dim():
                self.waits.append(f"upload of {tuple(source.shape)}")
            self.uploads += 1
        elif goes_there:
            self.launched[name] += 1
        return func(*args, **kwargs)


class _Inner(TorchDispatchMode):
    """The same device, for the parts of an operation."""

    def __init__(self, outer: PretendDevice) -> None:
        super().__init__()
        self._outer = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._outer.__torch_dispatch__(func, types, args, kwargs)


def specialised(launches: Iterable[Launch]) -> dict[tuple[str, str], Launch]:
    """The kernels that these launches need, each by its name and Triton's own key, for sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import compute_cache_key, create_function_from_signature

    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    binders: dict[Any, Any] = {}
    found: dict[tuple[str, str], Launch] = {}
    for launch in launches:
        kernel = launch.kernel
        binder = binders.get(kernel)
        if binder is None:
            binder = binders[kernel] = create_function_from_signature(
                kernel.signature, kernel.params, backend
            )
        _, specialisation, options = binder(**launch.arguments, debug=False, **launch.options)
        found.setdefault((kernel.__name__, compute_cache_key({}, specialisation, options)), launch)
    return found
