"""Corpora: where documents come from.

- `package-docs` (the default, offline): the docstrings of the pinned packages, one document a module. Sources are
  parsed, never imported, and what is read does not depend on the platform or the Python version, so the corpus is a
  function of the lock file. `config/package_docs.json` holds what was found when the manifest was made; a build checks
  it and names the package that differs. `ddl package-manifest` makes it again.
- `text`: a .txt file (one document), a .jsonl or .parquet file (one document a row, key "text"), or a folder of these.

Another corpus that fits in memory is a class beside these in `ddl.config` and a function here, registered with
`read_corpus`. Two more kinds need no documents in memory: `parquet-dataset`, a dataset of the Hugging Face hub
(`ddl.data.parquet_blocks`), and `shards`, token shards that are there already (`ddl.data.build`).
"""

import ast
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import singledispatch
from importlib import metadata
from pathlib import Path
from typing import Any

from ddl.config import DocumentCorpus, PackageDocs, TextFiles, load_scale, scale_names
from ddl.errors import UserError
from ddl.files import write_json
from ddl.layout import ROOT

PACKAGE_MANIFEST = ROOT / "config" / "package_docs.json"
GRAMMAR = (3, 11)  # the oldest supported Python: a module that needs a newer one is left out everywhere
MIN_WORDS = 8  # a module with less documentation is no document

# Folders with tests say little in prose. numpy.distutils is only in the wheels for Python 3.11.
# What lies outside site-packages ("..") are scripts, and where they lie depends on the machine.
SKIPPED_FOLDERS = {"tests", "test", "distutils", ".."}
# Written at build time: they name compilers, dates and hosts, and differ between the wheels of one release.
SKIPPED_FILES = {"version.py", "_version.py", "__config__.py", "_version_meson.py", "_distributor_init.py"}


class CorpusError(UserError):
    """A corpus that cannot be read or is not the expected one: the message says what is missing and what helps."""


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique in its corpus, `source` says what it is a part of (a package, a file, a dataset)."""

    id: str
    source: str
    text: str


@singledispatch
def read_corpus(corpus: DocumentCorpus) -> list[Document]:
    """All documents of a corpus that fits in memory, in a fixed order; each kind registers its own function.

    Raises:
        CorpusError: a package or path is missing, or a package is not the one of the manifest.
    """
    raise TypeError(f"{type(corpus).__name__}: no function is registered with read_corpus")


# ---------------------------------------------------------------------------------------------------------------------
# package-docs


@read_corpus.register
def _(corpus: PackageDocs) -> list[Document]:
    documents = []
    for package in sorted(corpus.packages):
        found = read_package(package)
        check_package(package, found)
        documents += found
    return documents


def read_package(package: str) -> list[Document]:
    """The documentation of one installed distribution, one document a module, sorted by file.

    Raises:
        CorpusError: the distribution is not installed, or was installed without a list of its files.
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise CorpusError(f"corpus package {package!r} is not installed: run `make setup`") from None
    if not distribution.files:
        raise CorpusError(f"corpus package {package!r} has no list of installed files: install it with pip")
    documents = []
    for file in sorted(distribution.files, key=lambda file: file.as_posix()):
        if file.suffix != ".py" or file.name in SKIPPED_FILES or SKIPPED_FOLDERS.intersection(file.parts[:-1]):
            continue
        try:
            source = Path(str(distribution.locate_file(file))).read_bytes()
        except OSError as error:
            raise CorpusError(f"corpus package {package!r}: cannot read {file}: {error.strerror}") from None
        text = module_documentation(source)
        if len(text.split()) >= MIN_WORDS:
            documents.append(Document(id=file.as_posix(), source=package, text=text))
    return documents


def module_documentation(source: bytes) -> str:
    """The docstrings of a module in source order, each under the line that introduces its class or function.

    Empty where there are none and where the source is no Python of `GRAMMAR`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes in other people's strings
            tree = ast.parse(source, feature_version=GRAMMAR)
    except (SyntaxError, ValueError):
        return ""
    parts = []
    for node in _statements(tree):
        docstring = _docstring(node)
        if docstring:
            parts.append(f"{_introduction(node)}{docstring}")
    # A docstring may hold half a surrogate pair, which no file can.
    return "\n\n".join(parts).encode("utf-8", "replace").decode()


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and its statements in source order. Expressions hold no docstring and are not walked."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        blocks = [getattr(node, field, ()) for field in ("body", "handlers", "orelse", "finalbody", "cases")]
        children = [child for block in blocks if isinstance(block, list) for child in block]
        stack.extend(reversed(children))


def _docstring(node: ast.AST) -> str:
    """The cleaned docstring of a module, class or function; empty for any other statement.

    `inspect.cleandoc` changed with Python 3.13; the corpus must not.
    """
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return ""
    first = node.body[0]
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return ""
    if not isinstance(first.value.value, str):
        return ""
    lines = [line.rstrip() for line in first.value.value.expandtabs().split("\n")]
    margin = min((len(line) - len(line.lstrip(" ")) for line in lines[1:] if line), default=0)
    return "\n".join([lines[0].lstrip(), *(line[margin:] for line in lines[1:])]).strip("\n")


def _introduction(node: ast.AST) -> str:
    """`class Name` or `def name(parameters)` as a line of its own; empty for a module."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}\n"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"def {node.name}({', '.join(_parameters(node.args))})\n"
    return ""


def _parameters(arguments: ast.arguments) -> list[str]:
    """Names with their plain defaults. `ast.unparse` is not used: its output differs between Python versions."""
    positional = arguments.posonlyargs + arguments.args
    required = len(positional) - len(arguments.defaults)
    parameters = [name.arg for name in positional[:required]]
    pairs = zip(positional[required:], arguments.defaults, strict=True)
    parameters += [f"{name.arg}={_default(value)}" for name, value in pairs]
    if arguments.vararg:
        parameters.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        parameters.append("*")
    for name, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(name.arg if default is None else f"{name.arg}={_default(default)}")
    if arguments.kwarg:
        parameters.append(f"**{arguments.kwarg.arg}")
    return parameters


def _default(value: ast.expr) -> str:
    """A constant as Python writes it, `...` for everything else."""
    if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool | int | float)):
        return repr(value.value)
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isascii():
        return repr(value.value)
    return "..."


# ---------------------------------------------------------------------------------------------------------------------
# The manifest of the packages


def summarise_package(package: str, documents: Iterable[Document]) -> dict[str, Any]:
    """What the manifest holds of a package: version, number of documents, bytes of text, SHA-256 over ids and texts.

    The part of the version after "+" names a build (torch's "+cpu"), not a release, and is left out.
    """
    digest = hashlib.sha256()
    count = size = 0
    for document in documents:
        data = document.text.encode()
        digest.update(f"{document.id}\n{len(data)}\n".encode() + data)
        count += 1
        size += len(data)
    version = metadata.version(package).split("+")[0]
    return {"version": version, "documents": count, "bytes": size, "sha256": digest.hexdigest()}


def check_package(package: str, documents: list[Document], manifest: Path = PACKAGE_MANIFEST) -> None:
    """Compare a package as it was read with the committed manifest.

    Raises:
        CorpusError: naming the package, what was found and what was expected.
    """
    again = "`ddl package-manifest` makes it again"
    try:
        expected = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{manifest}: not readable ({error}): {again}") from None
    if package not in expected:
        raise CorpusError(f"corpus package {package!r} is not in {manifest.name}: {again}")
    found, wanted = summarise_package(package, documents), expected[package]
    if found["version"] != wanted["version"]:
        raise CorpusError(
            f"{package} {found['version']} is installed, {manifest.name} was made with {wanted['version']}: "
            f"install requirements.lock, or for a corpus of your own {again}"
        )
    for key in ("documents", "bytes", "sha256"):
        if found[key] != wanted[key]:
            raise CorpusError(
                f"{package} {found['version']}: {key} of its documentation: found {found[key]}, {manifest.name} "
                f"expects {wanted[key]}: its installed files were changed, install it again"
            )


def packages_of_scales() -> set[str]:
    """The packages whose documentation any scale reads."""
    corpora = [load_scale(name).corpus for name in scale_names()]
    return {package for corpus in corpora if isinstance(corpus, PackageDocs) for package in corpus.packages}


def write_package_manifest(packages: Iterable[str], manifest: Path = PACKAGE_MANIFEST) -> None:
    """Write the manifest of `packages` as they are installed."""
    write_json(manifest, {name: summarise_package(name, read_package(name)) for name in sorted(packages)})


# ---------------------------------------------------------------------------------------------------------------------
# text


@read_corpus.register
def _(corpus: TextFiles) -> list[Document]:
    return read_text(Path(corpus.path))


def read_text(path: Path) -> list[Document]:
    """The documents of a file or of the .txt, .jsonl and .parquet files under a folder, sorted by path.

    Raises:
        CorpusError: nothing there, a file of another kind, a row without "text", bytes that are no UTF-8.
    """
    if not path.exists():
        raise CorpusError(f"corpus path {path} does not exist")
    readers = {".txt": _read_plain, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.is_file() and path.suffix not in readers:
        raise CorpusError(f"corpus path {path}: expected one of {', '.join(readers)}, found {path.suffix or 'none'}")
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in readers]
    documents = []
    for file in sorted(files, key=lambda file: file.relative_to(root).as_posix()):
        name = file.relative_to(root).as_posix()
        try:
            texts = readers[file.suffix](file)
        except (KeyError, TypeError):
            raise CorpusError(f"{file}: every row needs a string under the key 'text'") from None
        except (OSError, ValueError) as error:  # includes what pyarrow, json and the UTF-8 decoder raise
            raise CorpusError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
        single = file.suffix == ".txt"
        documents += [Document(name if single else f"{name}:{row}", name, text) for row, text in enumerate(texts)]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise CorpusError(f"corpus path {path}: no documents in .txt, .jsonl or .parquet files there")
    return documents


def _read_plain(file: Path) -> list[str]:
    return [file.read_text(encoding="utf-8")]


def _read_jsonl(file: Path) -> list[str]:
    with open(file, encoding="utf-8") as lines:
        return [_string(json.loads(line)["text"]) for line in lines if line.strip()]


def _read_parquet(file: Path) -> list[str]:
    from pyarrow import parquet

    return [_string(text) for text in parquet.read_table(file, columns=["text"]).column("text").to_pylist()]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def make_package_manifest() -> None:
    """Overwrite config/package_docs.json with what the packages of all scales hold now, and print one line each."""
    write_package_manifest(packages_of_scales())
    for name, entry in json.loads(PACKAGE_MANIFEST.read_text(encoding="utf-8")).items():
        print(f"{name} {entry['version']}: {entry['documents']} documents, {entry['bytes'] / 1e6:.2f} MB")
