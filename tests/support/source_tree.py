"""Modules of the checkout and who imports whom, read from the files without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from paths import ENGINE

# The rooms of innervoice: a folder, types.py or __init__.py. A room imports rooms of lower rank only.
RANKS = {
    "types": 0,
    "checkpoint": 1,
    "telemetry": 1,
    "schedule": 2,
    "codec": 3,
    "model": 3,
    "runtime": 4,
    "api": 5,
    "__init__": 6,
    "tools": 7,
}


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def room(path: Path) -> str:
    """The room of innervoice that a file belongs to."""
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


def imported_rooms(path: Path) -> Iterator[str]:
    """Rooms of innervoice that a file of it imports; a name that is no module of it comes out of its __init__."""
    for name in imports(path, ENGINE):
        parts = name.split(".")
        if parts[0] == "innervoice":
            own = len(parts) > 1 and ((ENGINE / parts[1]).is_dir() or (ENGINE / f"{parts[1]}.py").is_file())
            yield parts[1] if own else "__init__"


def module_graph(root: Path) -> dict[str, set[str]]:
    """Every module of a package, by its dotted name -> the modules of the package that it imports."""
    named = {}
    for path in modules(root):
        parts = [root.name, *path.relative_to(root).with_suffix("").parts]
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in named.items():
        graph[name] = set()
        for imported in imports(path, root):
            target = imported
            while target and target not in named:
                target = target.rpartition(".")[0]
            if target and target != name:
                graph[name].add(target)
    return graph
