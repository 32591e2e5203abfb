"""Read the documents of a corpus that fits in memory.

- `package-docs` (the default, offline): the docstrings of the pinned packages, one document per module. Sources are
  parsed, never imported. The text depends on neither the platform nor the Python version, so the lock file determines
  the corpus. `config/package_docs.json` is the manifest of the expected documents: a build compares each package with
  it and names the one that differs. `ddl package-manifests` rewrites it.
- `package-sources`: the whole source of the same kind of modules, four times as much text; its manifest is
  `config/package_sources.json`.
- `text`: a .txt file (one document), a .jsonl or .parquet file (one document per row, key "text"), or a folder of
  these; the validation documents may be given in the same way.

To add a corpus that fits in memory, add a class in `ddl.config` and a function here, registered with `read_corpus`.
Two other corpora are not held in memory: `parquet-dataset`, a dataset on the Hugging Face hub
(`ddl.data.parquet_blocks`), and `shards`, existing token shards (`ddl.data.build`).
"""

import ast
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import singledispatch
from importlib import metadata
from pathlib import Path
from typing import Any

from ddl.config import DocumentCorpus, PackageDocs, Packages, PackageSources, TextFiles, load_scale, scale_names
from ddl.errors import UserError
from ddl.files import write_json
from ddl.layout import ROOT

GRAMMAR = (3, 11)  # the oldest supported Python: a module that needs a newer one is skipped on every Python
MIN_WORDS = 8  # a module with fewer words of text is skipped

# Test folders contain little prose. numpy.distutils is only in the wheels for Python 3.11.
# Files outside site-packages ("..") are scripts, whose location depends on the machine.
SKIPPED_FOLDERS = {"tests", "test", "distutils", ".."}
# These are written at build time: they name compilers, dates and hosts, and differ between the wheels of one release.
SKIPPED_FILES = {"version.py", "_version.py", "__config__.py", "_version_meson.py", "_distributor_init.py"}


class CorpusError(UserError):
    """A corpus that cannot be read or is not the expected one; the message names the fault and a remedy."""


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique within its split; `source` is the package or file that contains the text."""

    id: str
    source: str
    text: str


@singledispatch
def read_corpus(corpus: DocumentCorpus) -> list[Document]:
    """Read all documents of a corpus in a fixed order; a function is registered for each class of corpus.

    Raises:
        CorpusError: a package or path is missing, or a package differs from the manifest.
    """
    raise TypeError(f"{type(corpus).__name__}: no function is registered with read_corpus")


def given_validation(corpus: DocumentCorpus) -> list[Document] | None:
    """The validation documents of a corpus that has some of its own; None if they have to be held out.

    Raises:
        CorpusError: as for `read_corpus`.
    """
    if not isinstance(corpus, TextFiles) or not corpus.val_path:
        return None
    try:
        return read_text(Path(corpus.val_path))
    except CorpusError as error:
        raise CorpusError(f"corpus.val_path: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# package-docs and package-sources


@read_corpus.register
def _(corpus: Packages) -> list[Document]:
    documents = []
    for package in sorted(corpus.packages):
        found = read_package(package, TEXT_OF[type(corpus)])
        check_package(package, found, ROOT / corpus.manifest)
        documents += found
    return documents


def read_package(package: str, text_of: Callable[[bytes], str]) -> list[Document]:
    """Read one installed distribution: one document per module, sorted by file.

    Args:
        text_of: the text of a module's source.

    Raises:
        CorpusError: the distribution is not installed, has no list of installed files, or a file cannot be read.
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
        text = text_of(source)
        if len(text.split()) >= MIN_WORDS:
            documents.append(Document(id=file.as_posix(), source=package, text=text))
    return documents


def module_source(source: bytes) -> str:
    """The source itself; empty if it is not UTF-8."""
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError:
        return ""


def module_documentation(source: bytes) -> str:
    """The docstrings of a module in source order, each under the line that introduces its class or function.

    The result is empty if there are none or if the source does not parse as Python of version `GRAMMAR`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's strings contain unknown escapes
            tree = ast.parse(source, feature_version=GRAMMAR)
    except (SyntaxError, ValueError):
        return ""
    parts = []
    for node in _statements(tree):
        docstring = _docstring(node)
        if docstring:
            parts.append(f"{_introduction(node)}{docstring}")
    # A docstring may contain a lone surrogate, which UTF-8 cannot encode.
    return "\n\n".join(parts).encode("utf-8", "replace").decode()


TEXT_OF: dict[type[Packages], Callable[[bytes], str]] = {
    PackageDocs: module_documentation,
    PackageSources: module_source,
}


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Walk the module and its statements in source order; expressions contain no docstrings and are skipped."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        yield node
        blocks = [getattr(node, field, ()) for field in ("body", "handlers", "orelse", "finalbody", "cases")]
        children = [child for block in blocks if isinstance(block, list) for child in block]
        stack.extend(reversed(children))


def _docstring(node: ast.AST) -> str:
    """The cleaned docstring of a module, class or function; empty for any other statement.

    `inspect.cleandoc` is not used: its output changed with Python 3.13, and the corpus must not change.
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
    """`class Name` or `def name(parameters)` on its own line; empty for a module."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}\n"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"def {node.name}({', '.join(_parameters(node.args))})\n"
    return ""


def _parameters(arguments: ast.arguments) -> list[str]:
    """Names with their constant defaults. `ast.unparse` is not used: its output differs between Python versions."""
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
    """The `repr` of a constant; `...` for everything else."""
    if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool | int | float)):
        return repr(value.value)
    if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.isascii():
        return repr(value.value)
    return "..."


# ---------------------------------------------------------------------------------------------------------------------
# The manifests of the packages


def summarise_package(package: str, documents: Iterable[Document]) -> dict[str, Any]:
    """The manifest entry of a package: version, number of documents, bytes of text, SHA-256 over ids and texts.

    The part of the version after "+" is omitted: it names a build (torch's "+cpu"), not a release.
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


def check_package(package: str, documents: list[Document], manifest: Path) -> None:
    """Compare the documents of a package with a manifest.

    Raises:
        CorpusError: the manifest is not readable, or the package differs from it or is not in it.
    """
    again = "`ddl package-manifests` rewrites the manifest"
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
            f"install requirements.lock, or accept a corpus of your own: {again}"
        )
    for key in ("documents", "bytes", "sha256"):
        if found[key] != wanted[key]:
            raise CorpusError(
                f"{package} {found['version']}: {key} of its modules: found {found[key]}, {manifest.name} "
                f"expects {wanted[key]}: its installed files were changed, reinstall it"
            )


def packages_of_scales(kind: type[Packages]) -> set[str]:
    """The packages that the corpora of this kind read, at any scale."""
    corpora = [load_scale(name).corpus for name in scale_names()]
    return {package for corpus in corpora if type(corpus) is kind for package in corpus.packages}


def write_package_manifest(packages: Iterable[str], text_of: Callable[[bytes], str], manifest: Path) -> None:
    """Write the manifest of the installed `packages`."""
    write_json(manifest, {name: summarise_package(name, read_package(name, text_of)) for name in sorted(packages)})


# ---------------------------------------------------------------------------------------------------------------------
# text


@read_corpus.register
def _(corpus: TextFiles) -> list[Document]:
    return read_text(Path(corpus.path))


def read_text(path: Path) -> list[Document]:
    """Read the documents of a file, or of the .txt, .jsonl and .parquet files under a folder, sorted by path.

    Raises:
        CorpusError: the path is missing, has another suffix or has no documents; a row has no "text"; bytes are not
            UTF-8.
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
        except (OSError, ValueError) as error:  # includes the exceptions of pyarrow, json and the UTF-8 decoder
            raise CorpusError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
        single = file.suffix == ".txt"
        documents += [Document(name if single else f"{name}:{row}", name, text) for row, text in enumerate(texts)]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise CorpusError(f"corpus path {path}: no documents found in its .txt, .jsonl or .parquet files")
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


def make_package_manifests() -> None:
    """Overwrite the manifests with the installed packages of all scales, and print one line per package."""
    for kind, text_of in TEXT_OF.items():
        manifest = ROOT / kind.manifest
        write_package_manifest(packages_of_scales(kind), text_of, manifest)
        print(kind.manifest)
        for name, entry in json.loads(manifest.read_text(encoding="utf-8")).items():
            print(f"  {name} {entry['version']}: {entry['documents']} documents, {entry['bytes'] / 1e6:.2f} MB")
