"""Who may import whom: a module of innervoice imports lower ranks only, innervoice_kernels never imports innervoice."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "engine" / "innervoice"
KERNELS = ROOT / "kernels" / "innervoice_kernels"

# A package stands for all its modules, which may import each other.
RANKS = {
    "types": 0,
    "config": 0,
    "errors": 0,
    "metrics": 0,
    "trace": 1,
    "text": 1,
    "checkpoint": 1,
    "safetensors_file": 1,
    "outlet": 1,
    "heap": 1,
    "safetensors_writer": 1,
    "schedule": 2,
    "blocks": 2,
    "model": 2,
    "codec": 2,
    "batch": 3,
    "scheduler": 3,
    "plan": 4,
    "reply_log": 3,
    "telemetry": 3,
    "playback": 3,
    "codec_commands": 3,
    "prometheus": 4,
    "runner": 4,
    "stepper": 3,
    "voice": 4,
    "simulator": 4,
    "dialogue": 4,
    "heard": 4,
    "quantize": 5,
    "running": 5,
    "stream": 5,
    "isolation": 5,
    "stepping": 6,
    "listening": 5,
    "decode_bench": 5,
    "intake": 6,
    "ledger": 6,
    "recording": 6,
    "dialogues": 7,
    "reply_trace": 7,
    "replies": 8,
    "core": 9,
    "loader": 10,
    "worker": 10,
    "calibration": 10,
    "session": 11,
    "engine": 12,
    "eventlog": 12,
    "__init__": 13,
    "server": 13,
    "display": 13,
    "environment": 13,
    "replay": 13,
    "loadgen": 13,
    "cli_replay": 14,
    "cli_bench": 14,
    "cli_simulate": 14,
    "cli_decode": 14,
    "cli": 15,
    "__main__": 15,
}
WITHOUT_TORCH = ("types", "config", "errors", "schedule", "scheduler", "simulator", "blocks", "playback", "metrics")


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def unit(path: Path) -> str:
    """What RANKS calls a file of innervoice."""
    first = path.relative_to(ENGINE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path, root: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, wherever in the file; `from a import b` gives a.b."""
    package = [root.name, *path.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_units(path: Path) -> Iterator[str]:
    """Units of innervoice that a file of it imports; what is no module of it comes out of its __init__."""
    for name in imports(path, ENGINE):
        parts = name.split(".")
        if parts[0] == "innervoice":
            own = len(parts) > 1 and ((ENGINE / parts[1]).is_dir() or (ENGINE / f"{parts[1]}.py").is_file())
            yield parts[1] if own else "__init__"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", modules(ENGINE), ids=name_of)
def test_module_imports_lower_ranks_only(path: Path) -> None:
    own = unit(path)
    assert own in RANKS, f"{own} has no rank: give it one here and a line in ARCHITECTURE.md"
    own_rank = RANKS[own]
    others = sorted(set(imported_units(path)) - {own})
    assert [other for other in others if RANKS.get(other, own_rank) >= own_rank] == [], f"{own} has rank {own_rank}"


@pytest.mark.parametrize("path", [p for p in modules(ENGINE) if unit(p) in WITHOUT_TORCH], ids=name_of)
def test_module_is_free_of_torch(path: Path) -> None:
    names = list(imports(path, ENGINE))
    assert [name for name in names if name.split(".")[0] == "torch"] == []
    kernels = [name for name in names if name.split(".")[0] == "innervoice_kernels"]
    others = [name for name in kernels if not name.startswith("innervoice_kernels._C")]
    assert others == [], "of the kernels only _C is free of torch"


@pytest.mark.parametrize("path", modules(KERNELS), ids=name_of)
def test_kernels_do_not_import_the_engine(path: Path) -> None:
    assert [name for name in imports(path, KERNELS) if name.split(".")[0] == "innervoice"] == []


@pytest.mark.parametrize("package", ["innervoice", "innervoice_kernels"])
def test_import_touches_no_gpu(package: str) -> None:
    code = f"import sys; sys.path[:0] = sys.argv[1:]\nimport {package}, torch\nprint(torch.cuda.is_initialized())"
    paths = [path for path in sys.path if path]
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr
