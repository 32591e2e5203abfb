"""Find the code that a result depends on, and digest it to detect changes.

A result depends on the modules that compute it and on every module of a sub-package of `ddl` that these import.
Modules directly under `ddl` do not count: they decide where and how results are written, and settings are compared
separately, by value. Comments and docstrings do not count either.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ddl.layout import ROOT

PACKAGE = ROOT / "ddl"
BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # fields that hold statements
NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, *NAMED)  # nodes that can have a docstring


def code_identity(*sources: str) -> dict[str, str]:
    """Digest the code behind a result.

    Args:
        sources: modules ("ddl.training.run"), and notebooks by their path ("notebooks/05_gradient.py"). For a notebook,
            only its imports count and the full text of the functions that it shows with `source(...)`.

    Returns:
        Path relative to the repository -> SHA-256 of the file's syntax tree, in alphabetical order. A function that a
        notebook shows adds an entry path:name -> SHA-256 of its text.
    """
    notebooks = [ROOT / source for source in sources if source.endswith(".py")]
    todo = [file for source in sources if not source.endswith(".py") for file in _files(source)]
    todo += [file for notebook in notebooks for name in _read(notebook)[1] for file in _files(name)]
    found: dict[str, str] = {}
    while todo:
        path = todo.pop()
        if (name := path.relative_to(ROOT).as_posix()) not in found:
            found[name], imports = _read(path)
            todo += [file for module in imports for file in _files(module)]
    for notebook in notebooks:
        found |= _shown(notebook)
    return dict(sorted(found.items()))


def _files(module: str) -> list[Path]:
    """The files in the sub-packages that run when `module`, or a name in it, is imported."""
    package, *parts = module.split(".")
    folders = [PACKAGE.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    candidates = [path for folder in folders for path in (folder.with_suffix(".py"), folder / "__init__.py")]
    return [path for path in candidates if package == "ddl" and path.parent != PACKAGE and path.is_file()]


def digest(path: Path) -> str:
    """SHA-256 of the syntax tree of a Python file, without comments and docstrings."""
    return _read(path)[0]


@cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """Digest a file's syntax tree and list the names that the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(_meaning(tree)).encode()).hexdigest(), tuple(_imports(tree))


def _meaning(node: Any) -> Any:
    """A syntax tree as nested lists, without positions, docstrings and empty fields.

    Newer Python versions add fields, which are empty unless code uses the new syntax.
    """
    if isinstance(node, list):
        return [_meaning(item) for item in node]
    if not isinstance(node, ast.AST):
        return ascii(node)
    meaning: list[Any] = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            value = value[1:]
        if value is not None and value != [] and name not in ("ctx", "kind"):
            meaning.append([name, _meaning(value)])
    return meaning


def _imports(node: ast.AST) -> Iterator[str]:
    """Names that a syntax tree imports, at any depth, except under `if TYPE_CHECKING`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    only_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    blocks = ("orelse",) if only_types else BLOCKS
    for child in [child for block in blocks for child in getattr(node, block, ())]:
        yield from _imports(child)


def _shown(notebook: Path) -> dict[str, str]:
    """Digest the text of the functions that a notebook shows with `source(function, Class.method)`."""
    nodes = list(ast.walk(ast.parse(notebook.read_text(encoding="utf-8"))))
    modules = {alias.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "source"]
    shown = {}
    for name in [ast.unparse(argument) for call in calls for argument in call.args]:
        module = _files(str(modules.get(name.split(".")[0])))[-1:]  # none if the notebook defines it
        for path in module:
            text = path.read_text(encoding="utf-8")
            lines, nodes = text.split("\n"), list[ast.AST]([ast.parse(text)])
            for part in name.split("."):
                inside = [child for node in nodes for child in ast.walk(node) if isinstance(child, NAMED)]
                nodes = [child for child in inside if child.name == part]
            texts = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes]  # type: ignore[attr-defined]
            key = f"{path.relative_to(ROOT).as_posix()}:{name}"
            shown[key] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return shown
