"""Compile every kernel of the language model's step for sm_90, without a GPU, at GLM-4-Voice-9B's shapes.

`python -m bench.aot --json FILE` writes a list of {name, shape, config, registers, spills, shared_bytes, triton}: registers a
thread, bytes that a thread spills to local memory (loads and stores, as ptxas counts them), shared memory a block, all read from
ptxas's own report. Kernels that bench/slots.py knows have {programs, slots} besides, others what COUNTED and MERGES say. The
shapes come through the public ops, on meta tensors, so that what is compiled is what a GPU would launch.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench import slots
from torch import Tensor

from innervoice_kernels.jit import HAS_TRITON, Launch, recorded

CAPABILITY = 90
NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
NAMES |= {
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.bool: "i1",
    torch.float64: "fp64",
}
COUNTED = {
    "int4_linear",
    "scaled_linear",
}  # kernels whose record has the issue slots of a round of their loop
MERGES = {
    "decode",
    "step_attention",
}  # kernels whose record has the copies to shared memory behind the arrival of a split
TABLE = Path(__file__).resolve().parent / "aot_sm90.json"


def signature(
    launch: Launch,
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Types, constants and alignments of a launch's arguments, as Triton's own specialisation finds them."""
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, param in enumerate(launch.kernel.params):
        value = launch.arguments[param.name]
        is_one = isinstance(value, int) and value == 1 and not param.do_not_specialize
        if param.is_constexpr or value is None or is_one:
            types[param.name], constants[param.name] = "constexpr", value
            continue
        types[param.name] = _type_of(value)
        if param.do_not_specialize:
            continue
        start = value.storage_offset() * value.element_size() if isinstance(value, Tensor) else value
        if not isinstance(value, float) and start % 16 == 0:
            aligned[index,] = [["tt.divisibility", 16]]
    return types, constants, aligned


def _type_of(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(launch: Launch) -> Any:
    """What Triton makes of a launch for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, *signature(launch))
    return triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=launch.options)


def resources(ptx: str) -> dict[str, int]:
    """What ptxas, the one of its package that Triton itself would run, says of a kernel: registers and spilled bytes."""
    from triton.backends.nvidia.compiler import get_ptxas

    ptxas = get_ptxas(CAPABILITY).path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [ptxas, "-v", f"-arch=sm_{CAPABILITY}a", path, "-o", Path(folder) / "kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", report))
    registers = re.findall(r"Used (\d+) registers", report)
    assert len(registers) == 1, f"ptxas reported {len(registers)} kernels:\n{report}"
    return {"registers": int(registers[0]), "spills": spills}


def stack(cubin: bytes) -> int:
    """Bytes of a thread's stack, where spilled registers go: a kernel without one spills nothing."""
    used = slots.listing("cuobjdump", cubin, "--dump-resource-usage")
    return int(re.findall(r"STACK:(\d+)", used)[0])


def loop_slots(cubin: bytes) -> int:
    """Instructions of a kernel's largest loop: the issue slots that a warp takes for one round of it."""
    labels: dict[str, int] = {}
    count, largest = 0, 0
    for line in slots.assembly(cubin).splitlines():
        if label := re.match(r"(\.L_\w+):", line.strip()):
            labels[label[1]] = count
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            count += 1
            back = re.search(r"BRA.*`\((\.L_\w+)\)", instruction[1])
            if back and back[1] in labels:
                largest = max(largest, count - labels[back[1]])
    return largest


def launches_of_all() -> Iterator[tuple[str, str, Launch]]:
    """(kernel, shape, launch) of every kernel, configuration and alignment that the shapes launch, each once."""
    from bench import aot_experts, aot_fuse, aot_shapes

    seen: set[str] = set()
    for call in (*aot_shapes.CALLS, *aot_experts.CALLS, *aot_fuse.CALLS):
        with recorded() as launches:
            call.run()
        for launch in launches:
            name = launch.kernel.__name__.removeprefix("_").removesuffix("_kernel")
            key = f"{name} {describe(launch)} {signature(launch)}"
            if key not in seen:
                seen.add(key)
                yield name, call.name, launch


def record(name: str, shape: str, launch: Launch) -> dict[str, Any]:
    """A line of the table."""
    import triton

    made = compiled(launch)
    loop = {"loop_slots": loop_slots(made.asm["cubin"])} if name in COUNTED else {}
    if name in MERGES:
        loop = {"copies": made.asm["ptx"].rpartition("atom.")[2].count("cp.async.cg")}
    return {
        "name": name,
        "shape": shape,
        "config": describe(launch),
        **resources(made.asm["ptx"]),
        "shared_bytes": made.metadata.shared,
        **slots.count(name, launch, made.asm["cubin"]),
        **loop,
        "triton": triton.__version__,
    }


def describe(launch: Launch) -> dict[str, Any]:
    """The constants and options of a launch."""
    constants = {p.name: launch.arguments[p.name] for p in launch.kernel.params if p.is_constexpr}
    dtype = next(NAMES[x.dtype] for x in launch.arguments.values() if isinstance(x, Tensor))
    return {"dtype": dtype} | constants | launch.options


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"where the records go; the checked-in table is bench/{TABLE.name}",
    )
    parser.add_argument("--only", metavar="TEXT", help="kernels whose name holds this")
    arguments = parser.parse_args()
    if not HAS_TRITON:
        raise SystemExit("bench.aot needs Triton: pip install 'innervoice[gpu]'")
    made = []
    for name, shape, launch in launches_of_all():
        if arguments.only is None or arguments.only in name:
            line = record(name, shape, launch)
            made.append(line)
            numbers = "  ".join(f"{key} {line[key]:6}" for key in ("registers", "spills", "shared_bytes"))
            print(f"{name:16} {shape:36} {numbers}  {line['config']}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text("[\n" + ",\n".join(json.dumps(line) for line in made) + "\n]\n")


if __name__ == "__main__":
    main()
