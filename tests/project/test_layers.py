"""Who may import whom: rooms import lower rooms only, modules form no circle, the kernels never import the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ENGINE, KERNELS, ROOT
from source_tree import (
    RANKS,
    changes_module_state,
    imported_rooms,
    imports,
    module_graph,
    modules,
    room,
)

WITHOUT_TORCH = (
    "fields.py",
    "files",
    "api/configs.py",
    "api/preparation.py",
    "types.py",
    "checkpoint/files.py",
    "checkpoint/model_config.py",
    "checkpoint/speech_decoder.py",
    "checkpoint/speech_tokenizer.py",
    "checkpoint/codecs.py",
    "checkpoint/codec_readers.py",
    "checkpoint/rope.py",
    "checkpoint/quantization.py",
    "checkpoint/yaml_reader.py",
    "checkpoint/gguf.py",
    "checkpoint/gguf_file.py",
    "checkpoint/decoder_tensors.py",
    "model/pages.py",
    "runtime/playback.py",
    "runtime/scheduler",
    "schedule",
    "telemetry/metrics.py",
    "tools/simulator",
)
KERNELS_WITHOUT_TORCH = (
    "innervoice_kernels._C",
    "innervoice_kernels.sampling.bits.",
    "innervoice_kernels.sampling.cursor_columns.",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", modules(ENGINE), ids=name_of)
def test_room_imports_lower_rooms_only(path: Path) -> None:
    own = room(path)
    assert own in RANKS, f"{own} is no room: a new file goes into a folder that ARCHITECTURE.md names"
    others = sorted(set(imported_rooms(path)) - {own})
    assert [other for other in others if RANKS.get(other, RANKS[own]) >= RANKS[own]] == [], (
        f"{own} has rank {RANKS[own]}"
    )


@pytest.mark.parametrize("package", [ENGINE, KERNELS], ids=lambda path: path.name)
def test_modules_import_each_other_in_no_circle(package: Path) -> None:
    graph = module_graph(package)
    while True:  # take away what imports nothing that is left
        leaves = {name for name, imported in graph.items() if not imported & graph.keys()}
        if not leaves:
            break
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert graph == {}, "modules on a circle of imports, or above one"


def test_the_scheduler_imports_nothing_of_the_runtime() -> None:
    paths = modules(ENGINE / "runtime" / "scheduler")
    names = {name for path in paths for name in imports(path, ENGINE) if name.startswith("innervoice.")}
    assert {name for name in names if not name.startswith("innervoice.runtime.scheduler.")} == set()


@pytest.mark.parametrize(
    "path", [p for place in WITHOUT_TORCH for p in modules(ENGINE / place) or [ENGINE / place]], ids=name_of
)
def test_module_is_free_of_torch(path: Path) -> None:
    names = list(imports(path, ENGINE))
    assert [name for name in names if name.split(".")[0] == "torch"] == []
    kernels = [name for name in names if name.split(".")[0] == "innervoice_kernels"]
    others = [name for name in kernels if not name.startswith(KERNELS_WITHOUT_TORCH)]
    assert others == [], f"of the kernels only {KERNELS_WITHOUT_TORCH} are free of torch"


def test_kernel_modules_for_the_schedule_load_no_torch() -> None:
    modules = ", ".join(name.rstrip(".") for name in KERNELS_WITHOUT_TORCH[1:])
    code = f"import sys; sys.path[:0] = sys.argv[1:]\nimport {modules}\nprint('torch' in sys.modules)"
    result = run_python(code)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


@pytest.mark.parametrize("path", modules(KERNELS), ids=name_of)
def test_kernels_do_not_import_the_engine(path: Path) -> None:
    assert [name for name in imports(path, KERNELS) if name.split(".")[0] == "innervoice"] == []


@pytest.mark.parametrize("package", [ENGINE, KERNELS], ids=lambda path: path.name)
def test_state_of_modules_is_named_in_architecture(package: Path) -> None:
    text = (
        (ROOT / "ARCHITECTURE.md")
        .read_text(encoding="utf-8")
        .split("## Module-level state")[1]
        .split("\n## ")[0]
    )
    found = {str(path.relative_to(package)) for path in modules(package) if changes_module_state(path)}
    assert sorted(name for name in found if f"`{name}`" not in text) == []


@pytest.mark.parametrize("package", ["innervoice", "innervoice_kernels"])
def test_import_touches_no_gpu(package: str) -> None:
    code = f"import sys; sys.path[:0] = sys.argv[1:]\nimport {package}, torch\nprint(torch.cuda.is_initialized())"
    result = run_python(code)
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own, which finds what this one finds."""
    paths = [path for path in sys.path if path]
    return subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
