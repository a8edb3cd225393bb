"""Modules of the checkout, their imports, docstrings and lines, read from the files without importing them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paths import ENGINE, KERNELS, ROOT

# The documents, by their paths from the root.
DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "csrc/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")),
]

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# The rooms of innervoice: a folder, types.py or __init__.py. A room imports rooms of lower rank only.
RANKS = {
    "fields": 0,
    "files": 0,
    "types": 1,
    "checkpoint": 2,
    "telemetry": 2,
    "schedule": 3,
    "codec": 4,
    "model": 4,
    "runtime": 5,
    "api": 6,
    "__init__": 7,
    "server": 8,
    "tools": 9,
    "__main__": 10,
}


def modules(folder: Path) -> list[Path]:
    """The Python files below a folder, in order."""
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


@dataclass(frozen=True)
class Docstring:
    """The docstring of a module, a public class or a public function, and where it stands."""

    path: Path
    line: int
    name: str
    text: str

    @property
    def first_sentence(self) -> str:
        """The first sentence on one line: it ends at a full stop, or with the paragraph."""
        paragraph = " ".join(self.text.split("\n\n")[0].split())
        found = re.match(r"(.+?[.?!])(?= [A-Z`(]|$)", paragraph)
        return found[1] if found else paragraph

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} {self.name}: {self.first_sentence}"


def docstrings(path: Path) -> Iterator[Docstring]:
    """The docstrings of a module and of its public classes, methods and functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text = ast.get_docstring(tree)
    if text:
        yield Docstring(path, 1, "module", text)
    for name, node in _public(tree, ""):
        text = ast.get_docstring(node)
        if text:
            yield Docstring(path, node.lineno, name, text)


def without_docstring(path: Path) -> list[str]:
    """The module, and those of its public classes and functions, that have no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named: list[tuple[str, ast.Module | Definition]] = [("module", tree)]
    named += [
        (node.name, node) for node in tree.body if isinstance(node, _DEFINITIONS) and node.name[0] != "_"
    ]
    return [f"{path.name}: {name}" for name, node in named if not ast.get_docstring(node)]


def _public(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
    for node in parent.body:
        if isinstance(node, _DEFINITIONS) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{node.name}.")


def packed_assignments(path: Path, least: int = 3) -> list[int]:
    """Lines that assign a tuple of at least so many values to a tuple of targets."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) and len(target.elts) >= least for target in node.targets)
    ]


def type_names() -> dict[str, list[str]]:
    """The module-level classes and type aliases of engine and kernels, private ones too -> the files that define each."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules(ENGINE) + modules(KERNELS):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name):  # an alias, not a constant
                    found[name].append(str(path.relative_to(ROOT)))
    return dict(found)


_CHANGES = ("append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "add")


def changes_module_state(path: Path) -> bool:
    """Whether a function of the module changes a module-level name, list, mapping or context variable."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    inside = [node for top in tree.body if isinstance(top, _DEFINITIONS) for node in ast.walk(top)]
    for node in inside:
        if isinstance(node, ast.Global):
            return True
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Subscript)
            and isinstance(target.value, ast.Name)
            and target.value.id in names
            for target in node.targets
        ):
            return True
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in (*_CHANGES, "set")
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in names
        ):
            return True
    return False
