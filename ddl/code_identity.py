"""Which code a result depends on."""

import ast
from pathlib import Path

from ddl.files import sha256_file
from ddl.layout import ROOT


def package_code(file: Path) -> dict[str, str]:
    """A file of this package and all that it imports from it, wherever the import stands: path -> SHA-256."""
    package = ROOT / "ddl"
    found, todo = {package / "__init__.py"}, [file.resolve()]
    while todo:
        found.add(path := todo.pop())
        names: list[str] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for parts in (name.split(".") for name in names if name.startswith("ddl.")):
            module = package.joinpath(*parts[1:])
            candidates = {module.with_suffix(".py"), module / "__init__.py", module.parent / "__init__.py"}
            todo += [path for path in candidates - found - set(todo) if path.is_file()]
    return {path.relative_to(package).as_posix(): sha256_file(path) for path in sorted(found)}
