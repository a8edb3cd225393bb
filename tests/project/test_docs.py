"""README, ARCHITECTURE, CONTRIBUTING and docs/ against the code: snippets, commands, options, tables, links, lengths."""

from __future__ import annotations

import ast
import builtins
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
from source_tree import DOCUMENTS, RANKS
from typer.testing import CliRunner

from innervoice.api.options import EngineOptions
from innervoice.schedule import PRESETS, Schedule
from innervoice.schedule.json_schema import check_schema
from innervoice.tools.cli.main import app
from innervoice.types import Usage

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
PAGES = {name: text for name, text in TEXTS.items() if name == "README.md" or name.startswith("docs/")}
MAX_LINES = {"README.md": 150, "ARCHITECTURE.md": 200}
FOLDERS = ("", "engine/innervoice", "kernels/innervoice_kernels", "csrc", "tests", "docs")
COMMANDS = (
    "demo",
    "generate",
    "evaluate",
    "serve",
    "plan",
    "quantize",
    "simulate",
    "codec encode",
    "bench decode",
    "bench stream",
    "bench realtime",
)
RUN_SCRIPTS = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"
RUN_COMMANDS = "import json, sys; from innervoice.tools.cli.main import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """The text from a heading to the next of its kind."""
    return re.split(r"^## ", text.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def script(text: str) -> str:
    """The Python of a page as one script, each line where the page has it, so that tracebacks give the page's line numbers."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return "\n".join(lines)


def commands(*names: str) -> list[list[str]]:
    """Words behind `innervoice` in the shell blocks of some pages, all by default."""
    lines = [
        line for name in names or PAGES for block in blocks(PAGES[name], "sh") for line in block.splitlines()
    ]
    assert all(line.startswith("innervoice ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def options_of(*command: str) -> set[str]:
    """The options that `--help` of a command shows."""
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    return set(re.findall(r"--[a-z][a-z-]+", shown.output))


def table(text: str) -> list[list[str]]:
    """Rows of a table's body, of the first table in the text."""
    lines = re.search(r"^\|.*?(?=\n[^|]|\n*\Z)", text, re.MULTILINE | re.DOTALL)
    assert lines is not None
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    return [row for row in rows[1:] if not set(row[0]) <= {"-"}]


def names_in(text: str) -> list[str]:
    """Names in backquotes."""
    return re.findall(r"`(\w+)`", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


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
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path, assets_dir: Path) -> Path:
    """The working directory that the pages assume, in which their snippets have been run, page by page."""
    made = tmp_path_factory.mktemp("pages")
    (made / "checkpoints").mkdir()
    (made / "checkpoints" / "glm-4-voice").symlink_to(tiny_dir)
    (made / "question.wav").symlink_to(assets_dir / "question.wav")
    save(make_module("mimi"), made / "checkpoints" / "mimi")
    scripts = []
    for name, text in PAGES.items():
        if blocks(text, "python"):
            path = made / f"{name.replace('/', '_')}.py"
            path.write_text(script(text), encoding="utf-8")
            scripts.append(str(path))
    run(made, "-c", RUN_SCRIPTS, *scripts)
    return made


def packages() -> list[Path]:
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


@pytest.mark.parametrize("folder", packages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_docstring_of_a_package_has_a_line_a_file(folder: Path) -> None:
    doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert doc, "a package without a docstring"
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
    text = TEXTS["csrc/README.md"]
    assert {name for name, _ in re.findall(r"^([\w./]+\.(?:cpp|h)) +(\S.*)$", text, re.MULTILINE)} == files


@pytest.mark.parametrize("name", MAX_LINES)
def test_a_document_is_short(name: str) -> None:
    assert len(TEXTS[name].splitlines()) <= MAX_LINES[name]


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name: str) -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:py|pyi|cpp|h|toml|txt|in|md)|Makefile|[\w./-]+/)`", TEXTS[name]))
    made = {".venv/", "demo-out/", "checkpoints/"}
    assert sorted(s for s in named - made if not any((ROOT / place / s).exists() for place in FOLDERS)) == []


@pytest.mark.parametrize("name", TEXTS)
def test_classes_that_are_named_exist(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", TEXTS[name], flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z]\w*)?)(?:\.\w+)?[(`]", text))
    files = [path for folder in (ENGINE, KERNELS, ROOT / "csrc") for path in folder.rglob("*")]
    code = "\n".join(
        path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".pyi", ".h", ".cpp")
    )
    known = set(re.findall(r"\b(?:class|struct) (\w+)", code)) | set(dir(builtins))
    known |= set(re.findall(r"^(\w+)(?:: \w+)? = ", code, re.MULTILINE))
    assert sorted(named - known) == []


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    lost = []
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", TEXTS[name]):
        if "://" in target:
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            lost.append(f"{target}#{anchor}")
    assert lost == []


def test_every_page_is_linked_from_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", TEXTS["README.md"]))
    assert {name for name in TEXTS if name.startswith("docs/")} <= linked


def test_ranks_are_those_that_are_held() -> None:
    rows = table(section(TEXTS["ARCHITECTURE.md"], "Rooms and ranks"))
    assert {name: int(row[0]) for row in rows for name in names_in(row[1])} == RANKS


def test_every_field_of_usage_is_defined() -> None:
    rows = table(section(TEXTS["docs/events.md"], "Usage"))
    assert {name for row in rows for name in names_in(row[0])} == {f.name for f in fields(Usage)}


def test_python_of_the_pages_runs(folder: Path) -> None:
    assert (folder / "reply.wav").stat().st_size > 10_000
    assert (folder / "back.wav").stat().st_size > 1_000
    assert len(blocks(PAGES["README.md"], "python")) == 3
    assert len(list(folder.glob("*.md.py"))) >= 6


def test_schedules_of_the_pages_are_read(folder: Path) -> None:
    texts = [json.loads(block) for text in PAGES.values() for block in blocks(text, "json")]
    schedules = [text for text in texts if "cycle" in text]
    thoughtful, named, bound, listening, thinking = map(Schedule.from_dict, schedules)
    assert thoughtful == Schedule.load(folder / "thoughtful.json")
    assert named.limits == {"cause": 30}
    assert listening.listen and not thoughtful.listen
    check_schema(bound.prologue[0].schema, "schema")
    assert thinking.tokens["open"] == "<think>" and thinking.has("reflection")


def test_commands_of_the_pages_run(folder: Path) -> None:
    run(folder, "-c", RUN_COMMANDS, json.dumps(commands()))
    assert (folder / "answer.flac").exists()
    assert (folder / "again.flac").exists()
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [json.loads(line) for line in blocks(PAGES["docs/events.md"], "jsonl")[0].splitlines()]

    def keys(some: list[dict[str, Any]]) -> dict[str, list[str]]:
        return {line["kind"]: [*line, *line.get("usage", ())] for line in some}

    assert set(keys(shown)) == {"request", "reflection", "transcript", "speech", "audio", "done"}
    came = {kind: names for kind, names in keys(lines).items() if kind != "end"}
    assert came.keys() >= {"speech", "audio", "done"}  # the other kinds have the same keys as speech
    assert came == {kind: keys(shown)[kind] for kind in came}
    assert keys(shown)["reflection"] == keys(shown)["transcript"] == came["speech"]


def test_every_key_of_an_event_line_is_in_its_table() -> None:
    events = section(PAGES["docs/events.md"], "events.jsonl")
    rows = {kind: names_in(row[1]) for row in table(events) for kind in names_in(row[0])}
    for block in blocks(events, "jsonl")[0].splitlines():
        line = json.loads(block)
        assert set(line) - {"kind"} <= set(rows[line["kind"]])


def test_options_of_the_pages_exist() -> None:
    for words in commands():
        command = words[: 2 if words[0] in ("bench", "codec") else 1]
        assert {word for word in words if word.startswith("--")} <= options_of(*command)
    shown = set().union(*(options_of(*name.split()) for name in COMMANDS))
    others = {"--debug", "--cuda-graph-trace"}  # the second of nsys
    for name, text in PAGES.items():
        assert set(re.findall(r"--[a-z][a-z-]+", text)) - others - shown == set(), name
    described_here = set(re.findall(r"--[a-z][a-z-]+", PAGES["docs/command-line.md"]))
    assert options_of("generate") - {"--help"} <= described_here, "options that the page does not name"


def test_presets_of_the_table_are_all_presets() -> None:
    rows = {names_in(row[0])[0]: row for row in table(section(PAGES["docs/schedules.md"], "Presets"))}
    assert set(rows) == set(PRESETS)
    for name, (_, prologue, cycle, _) in rows.items():
        if name == "fixed_ratio":
            continue
        schedule = Schedule.preset(name)
        assert prologue == ", ".join(f"{s.kind} {s.budget or '(no cap)'}" for s in schedule.prologue)
        assert cycle.startswith(", ".join(f"{s.kind} {s.budget}" for s in schedule.cycle))


def test_every_engine_option_is_described_with_its_default() -> None:
    described_here: dict[str, str] = {}
    for names, defaults, _ in table(section(PAGES["docs/python.md"], "Engine options")):
        values = defaults.split(", ")  # one for all names of the row, or one for each
        described_here.update(zip(names_in(names), values * len(names_in(names)), strict=False))
    expected = {f.name: f.default for f in fields(EngineOptions)}
    assert described_here == {
        name: f'"{value}"' if isinstance(value, str) else str(value) for name, value in expected.items()
    }


def test_targets_that_are_named_exist() -> None:
    targets = {name for text in TEXTS.values() for name in re.findall(r"`make ([\w-]+)`", text)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets >= {"demo", "test"}
    known = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    known += [
        name for line in re.findall(r"^GPU_\w+ := (.*)$", makefile, re.MULTILINE) for name in line.split()
    ]
    assert sorted(targets - set(known)) == []
