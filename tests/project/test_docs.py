"""README, ARCHITECTURE and CONTRIBUTING against the code: files, ranks, snippets, commands, options, presets, event lines."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from codec_models import make_module, save
from paths import ENGINE, KERNELS, ROOT
from source_tree import RANKS
from typer.testing import CliRunner

from innervoice.schedule import PRESETS, Schedule
from innervoice.tools.cli.main import app
from innervoice.types import Usage

TEXTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
}
README, ARCHITECTURE = TEXTS["README.md"], TEXTS["ARCHITECTURE.md"]
FOLDERS = ("engine/innervoice", "kernels/innervoice_kernels", "csrc", "tests")
COMMANDS = (
    "generate",
    "quantize",
    "simulate",
    "bench stream",
)  # whose options the command line's section may name
RUN_COMMANDS = "import json, sys; from innervoice.tools.cli.main import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """From a heading to the next of its kind."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def snippets() -> str:
    """README's Python as one script, each line where README has it, so that a traceback's line numbers are README's."""
    lines, inside = [], False
    for line in README.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


def commands() -> list[list[str]]:
    """Words behind `innervoice` in README's shell blocks."""
    lines = [line for block in blocks(README, "sh") for line in block.splitlines()]
    assert all(line.startswith("innervoice ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def options_of(*command: str) -> set[str]:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    return set(re.findall(r"--[a-z][a-z-]+", shown.output))


def table(text: str) -> list[list[str]]:
    """Rows of a table's body."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in rows[1:] if not set(row[0]) <= {"-"}]


def run(folder: Path, *words: str) -> None:
    """Run Python in a folder, on the CPU, with the packages that the tests see."""
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path, assets_dir: Path) -> Path:
    """The working directory that README speaks of, in which its snippets have been run."""
    made = tmp_path_factory.mktemp("readme")
    (made / "checkpoints").mkdir()
    (made / "checkpoints" / "glm-4-voice").symlink_to(tiny_dir)
    (made / "question.wav").symlink_to(assets_dir / "question.wav")
    save(make_module("mimi"), made / "checkpoints" / "mimi")
    (made / "README.py").write_text(snippets(), encoding="utf-8")
    run(made, "README.py")
    return made


def rooms() -> list[Path]:
    """Every package of the engine and the kernels."""
    return sorted(
        path.parent
        for root in (ENGINE, KERNELS)
        for path in root.rglob("__init__.py")
        if path.parent != ENGINE
    )


def described(text: str) -> dict[str, str]:
    """Names and descriptions of the lines that begin with a file or a folder."""
    return dict(re.findall(r"^([\w.]+(?:\.\w+|/)) +(\S.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("folder", rooms(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docstring_of_a_room_has_a_line_a_file(folder: Path) -> None:
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert doc, "a room without a docstring"
    files = {
        path.name
        for path in folder.iterdir()
        if path.suffix in (".py", ".pyi") and path.name != "__init__.py"
    }
    folders = {f"{path.name}/" for path in folder.iterdir() if (path / "__init__.py").exists()}
    assert set(described(doc)) == files | folders


def test_the_native_code_has_a_line_a_file() -> None:
    csrc = ROOT / "csrc"
    files = {str(path.relative_to(csrc)) for path in csrc.rglob("*") if path.suffix in (".cpp", ".h")}
    text = (csrc / "README.md").read_text(encoding="utf-8")
    assert {name for name, _ in re.findall(r"^([\w./]+\.(?:cpp|h)) +(\S.*)$", text, re.MULTILINE)} == files


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_spoken_of_exist(name: str) -> None:
    spoken = set(re.findall(r"`([\w./-]+\.(?:py|pyi|cpp|h|toml|txt|in|md)|Makefile|[\w./-]+/)`", TEXTS[name]))
    made = {".venv/", "demo-out/"}
    places = [ROOT, *(ROOT / place for place in FOLDERS), ENGINE / "schedule", ENGINE / "model" / "families"]
    lost = sorted(
        s for s in spoken - made if not any((place / s).exists() for place in places) and s != "bench/"
    )
    assert lost == []


def test_ranks_are_those_that_are_held() -> None:
    rows = table(section(ARCHITECTURE, "Who may import whom"))
    told = {name: int(rank) for rank, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == RANKS


def test_every_number_of_usage_is_defined() -> None:
    rows = table(section(ARCHITECTURE, "What each number is called"))
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} == {
        f.name for f in fields(Usage)
    }


def test_documents_link_to_files_that_exist() -> None:
    targets = [
        target
        for text in TEXTS.values()
        for target in re.findall(r"\]\(([^)#]+)\)", text)
        if "://" not in target
    ]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_python_of_readme_runs(folder: Path) -> None:
    assert (folder / "reply.wav").stat().st_size > 10_000
    assert len(blocks(README, "python")) >= 4


def test_schedules_of_readme_are_read(folder: Path) -> None:
    texts = [json.loads(block) for block in blocks(README, "json")]
    schedules = [text for text in texts if "cycle" in text]
    assert len(schedules) == 1
    assert Schedule.from_dict(schedules[0]) == Schedule.load(folder / "thoughtful.json")


def test_commands_of_readme_run(folder: Path) -> None:
    run(folder, "-c", RUN_COMMANDS, json.dumps(commands()))
    assert (folder / "answer.flac").exists()
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [json.loads(line) for line in blocks(README, "jsonl")[0].splitlines()]

    def keys(some: list[dict[str, Any]]) -> dict[str, list[str]]:
        return {line["kind"]: [*line, *line.get("usage", ())] for line in some}

    assert set(keys(told)) == {"request", "reflection", "transcript", "speech", "audio", "done"}
    came = {kind: names for kind, names in keys(lines).items() if kind != "end"}
    assert came.keys() >= {"speech", "audio", "done"}  # the other kinds have the same keys as speech
    assert came == {kind: keys(told)[kind] for kind in came}
    assert keys(told)["reflection"] == keys(told)["transcript"] == came["speech"]


def test_options_of_readme_exist() -> None:
    for words in commands():
        command = words[: 2 if words[0] in ("bench", "codec") else 1]
        assert {word for word in words if word.startswith("--")} <= options_of(*command)
    told = set(re.findall(r"--[a-z][a-z-]+", section(README, "Command line")))
    assert told - {"--debug"} <= set().union(*(options_of(*name.split()) for name in COMMANDS))
    assert options_of("generate") - {"--help"} <= told, "options that README does not name"
    shown = [options_of(*name.split()) for name in ("plan", "codec encode", "bench decode", *COMMANDS)]
    others = {"--debug", "--cuda-graph-trace"}  # the second of nsys
    assert set(re.findall(r"--[a-z][a-z-]+", README)) - others <= set().union(*shown)


def test_presets_of_readme_are_all_presets() -> None:
    rows = {re.findall(r"`(\w+)`", row[0])[0]: row for row in table(section(README, "Schedules"))}
    assert set(rows) == set(PRESETS)
    for name, (_, prologue, cycle, _) in rows.items():
        if name == "fixed_ratio":
            continue
        schedule = Schedule.preset(name)
        assert prologue == ", ".join(f"{s.kind} {s.budget or '(no cap)'}" for s in schedule.prologue)
        assert cycle.startswith(", ".join(f"{s.kind} {s.budget}" for s in schedule.cycle))


def test_targets_that_are_spoken_of_exist() -> None:
    targets = {name for text in TEXTS.values() for name in re.findall(r"`make (\w+)`", text)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets >= {"demo", "test"}
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
