"""Documents are the same on every machine, come from the pinned versions, and are never on both sides of the split."""

import ast
import json
import random
import re
from importlib import metadata

import pyarrow
import pytest
from pyarrow import parquet

from ddl.config import PackageDocs, Packages, TextFiles
from ddl.data import train_val_split as dedup
from ddl.data.documents import (
    TEXT_OF,
    CorpusError,
    Document,
    check_package,
    given_validation,
    module_documentation,
    module_source,
    packages_of_scales,
    read_corpus,
    read_package,
    read_text,
    summarise_package,
    write_package_manifest,
)
from ddl.layout import ROOT

MODULE = '''
"""About the module.

  Indented text
    and further.
"""
import os

if os.name == "posix":
    def outer(a, /, b, c=1, *rest, d, e="x", f=os.sep, **more):
        """Does things.

        Args:
            a: first
        """
        class Inner(dict):
            "One line."
            async def wait(self, *, seconds=0.5):
                """Waits.\tThen returns.   """
    x = """no docstring"""
else:
    def undocumented(): pass
try:
    pass
except OSError:
    def fallback(): """Used elsewhere."""
'''

EXPECTED = """About the module.

Indented text
  and further.

def outer(a, b, c=1, *rest, d, e='x', f=..., **more)
Does things.

Args:
    a: first

class Inner
One line.

def wait(self, *, seconds=0.5)
Waits.  Then returns.

def fallback()
Used elsewhere."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a distribution `prose` 1.2 with two documented modules; returns a function that changes its files."""
    site = tmp_path / "site"
    info = site / "prose-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prose\nVersion: 1.2\n")

    def install(**files: str) -> None:
        for name, text in files.items():
            path = site / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        names = [path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()]
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in sorted(names, reverse=True)))

    install(**{"prose__a.py": '"""' + "word " * 9 + '"""', "prose__b.py": '"""' + "other " * 9 + '"""'})
    monkeypatch.syspath_prepend(str(site))
    return install


def words(seed: int, count: int) -> str:
    generator = random.Random(seed)
    return " ".join(
        generator.choice(["delta", "gate", "state", "value", "key"]) + str(generator.randrange(99))
        for _ in range(count)
    )


def documents(*texts: str) -> list[Document]:
    return [Document(f"{row}", "test", text) for row, text in enumerate(texts)]


def on_side(val: bool, make, fraction: float = 0.3) -> str:
    """The first text of make(0), make(1), ... that falls on the wanted side of the split."""
    return next(text for text in map(make, range(1000)) if dedup.in_validation(dedup.text_key(text), fraction) is val)


# -- package-docs


def test_documentation_is_every_docstring_under_its_signature_in_source_order():
    assert module_documentation(MODULE.encode()) == EXPECTED


def test_tabs_and_margins_are_cleaned_by_own_rules():
    source = '"""One.\n\n\tTab.\n        Eight more.\n\n"""'
    assert module_documentation(source.encode()) == "One.\n\nTab.\nEight more."


def test_module_with_newer_syntax_or_no_docstring_is_empty():
    assert module_documentation(b'"""Doc."""\ntype X = int\n') == ""
    assert module_documentation(b'"""Doc."""\ndef f[T](x: T): pass\n') == ""
    assert module_documentation(b"x = 1\n") == ""
    assert module_documentation(b"'''broken") == ""


def test_line_ends_and_half_surrogates_do_not_matter():
    assert module_documentation(b'"""a\r\n    b\r\n"""') == "a\nb"
    assert module_documentation(rb'"""a \ud800 b"""') == "a ? b"


def test_package_is_sorted_and_leaves_out_tests_versions_and_scripts(package):
    long = '"""' + "text " * 9 + '"""'
    package(
        prose__tests__t=long,
        **{"prose__tests__t.py": long, "prose__version.py": long, "prose__short.py": '"""Too few."""'},
    )
    assert [document.id for document in read_package("prose", module_documentation)] == ["prose/a.py", "prose/b.py"]


def test_package_is_never_imported(package):
    package(**{"prose__a.py": '"""' + "word " * 9 + '"""\nraise SystemExit("imported")'})
    assert len(read_package("prose", module_documentation)) == 2


def test_missing_package_is_named_with_the_command_that_helps():
    with pytest.raises(CorpusError, match="'no-such-package' is not installed: run `make setup`"):
        read_corpus(PackageDocs(val_fraction=0.1, packages=("no-such-package",)))


def test_manifest_accepts_what_it_was_made_from_and_names_what_differs(package, tmp_path):
    manifest = tmp_path / "manifest.json"
    write_package_manifest(["prose"], module_documentation, manifest)
    check_package("prose", read_package("prose", module_documentation), manifest)

    package(**{"prose__a.py": '"""' + "WORD " * 9 + '"""'})
    with pytest.raises(CorpusError, match=r"prose 1\.2: sha256 .* found [0-9a-f]{64}, .* expects [0-9a-f]{64}"):
        check_package("prose", read_package("prose", module_documentation), manifest)
    package(**{"prose__c.py": '"""' + "new " * 9 + '"""'})
    with pytest.raises(CorpusError, match=r"prose 1\.2: documents .* found 3, .* expects 2"):
        check_package("prose", read_package("prose", module_documentation), manifest)

    entries = json.loads(manifest.read_text())
    entries["prose"]["version"] = "1.1"
    manifest.write_text(json.dumps(entries))
    with pytest.raises(CorpusError, match=r"prose 1\.2 is installed, manifest.json was made with 1\.1: install"):
        check_package("prose", read_package("prose", module_documentation), manifest)
    with pytest.raises(CorpusError, match=r"'other' is not in manifest\.json"):
        check_package("other", [], manifest)
    with pytest.raises(CorpusError, match=r"none\.json: not readable"):
        check_package("prose", [], tmp_path / "none.json")


def test_build_suffix_of_a_version_is_no_other_version(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130")
    assert summarise_package("torch", [])["version"] == "2.13.0"


def test_sources_are_whole_modules(package):
    source = '"""Doc."""\nx = 1  # and some more words than the least number, é\n'
    package(**{"prose__a.py": source})
    assert read_package("prose", module_source)[0].text == source
    assert module_source("é".encode("latin-1")) == ""


def test_every_corpus_of_packages_has_a_text_and_a_manifest():
    assert set(TEXT_OF) == set(Packages.__subclasses__())
    assert len({kind.manifest for kind in TEXT_OF}) == len(TEXT_OF)


@pytest.mark.parametrize("kind", TEXT_OF)
def test_committed_manifest_covers_every_scale_and_agrees_with_the_lock_file(kind):
    manifest = json.loads((ROOT / kind.manifest).read_text())
    assert set(manifest) == packages_of_scales(kind) != set()
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {name: entry["version"] for name, entry in manifest.items()} == {name: pins[name] for name in manifest}


def test_committed_manifest_describes_an_installed_package():
    assert len(read_corpus(PackageDocs(val_fraction=0.1, packages=("networkx",)))) > 200


def test_extraction_needs_no_version_dependent_helper():
    """`ast.unparse`, `ast.get_docstring` and `inspect` give different output in different Python versions."""
    tree = ast.parse((ROOT / "ddl" / "data" / "documents.py").read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"unparse", "get_docstring", "cleandoc", "get_source_segment"}


# -- text and streams


def test_text_corpus_reads_three_formats_sorted_by_path(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("plain é", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "one", "n": 1}\n\n{"text": "two"}\n')
    parquet.write_table(pyarrow.table({"text": ["three", " ", "four"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    (tmp_path / "ignored.csv").write_text("text\nno")
    found = read_corpus(TextFiles(val_fraction=0.1, path=str(tmp_path)))
    assert [(document.id, document.text) for document in found] == [
        ("a.parquet:0", "three"),
        ("a.parquet:2", "four"),
        ("c.jsonl:0", "one"),
        ("c.jsonl:1", "two"),
        ("sub/b.txt", "plain é"),
    ]
    assert [document.text for document in read_text(tmp_path / "c.jsonl")] == ["one", "two"]


def test_validation_documents_may_be_given_and_are_then_not_in_training(tmp_path):
    for folder, texts in (("train", ["a b", "same  text", "c d"]), ("val", ["Same text", "e f", "e f"])):
        (tmp_path / folder).mkdir()
        for number, text in enumerate(texts):
            (tmp_path / folder / f"{number}.txt").write_text(text)
    corpus = TextFiles(path=str(tmp_path / "train"), val_path=str(tmp_path / "val"))
    split = dedup.split_documents(read_corpus(corpus), corpus.val_fraction, given_validation(corpus))
    assert [document.text for document in split.val] == ["Same text", "e f"]
    assert [document.text for document in split.train] == ["a b", "c d"]
    assert split.exact_removed == 2
    assert given_validation(TextFiles(path=str(tmp_path / "train"), val_fraction=0.1)) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"body": "a"}\n', "x.jsonl: every row needs a string under the key 'text'"),
        ("x.jsonl", b'{"text": 3}\n', "x.jsonl: every row needs a string under the key 'text'"),
        ("x.jsonl", b"not json\n", "x.jsonl: cannot be read"),
        ("x.parquet", b"not parquet", "x.parquet: cannot be read"),
        ("x.txt", b"\xff\xfe\xff", "x.txt: cannot be read"),
        ("x.txt", b" \n", "no documents"),
        ("x.csv", b"a", "expected one of .txt, .jsonl, .parquet, found .csv"),
    ],
)
def test_unreadable_text_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=re.escape(message)):
        read_text(tmp_path / name)


def test_missing_or_empty_path_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        read_text(tmp_path / "nothing")
    with pytest.raises(CorpusError, match="no documents"):
        read_text(tmp_path)


# -- split and duplicates


def naive_shared(texts: list[str], reference: list[str]) -> list[float]:
    """The definition, computed with sets of words."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        found = re.findall(r"\w+", text.lower())
        width = min(dedup.SHINGLE_WORDS, len(found))
        return {tuple(found[start : start + width]) for start in range(len(found) - width + 1)}

    known = set().union(*map(shingles, reference))
    return [len(own & known) / len(own) for own in map(shingles, texts)]


def test_shared_fraction_is_the_exact_share_of_shingles():
    base = words(0, 400).split()
    texts = [
        " ".join(base[a : a + n] + words(a + n, m).split()) for a, n, m in [(0, 100, 50), (50, 20, 200), (9, 7, 9)]
    ]
    texts.append(" ".join(base[:20] * 5 + words(6, 30).split()))  # repeats count once
    texts += ["short text", "Short  TEXT!", base[3] + " " + " ".join(base[:9])]
    reference = [" ".join(base), words(77, 100), "short, text"]
    assert dedup.shared_fractions(texts, reference).tolist() == naive_shared(texts, reference)
    assert dedup.shared_fractions(texts, []).tolist() == [0.0] * len(texts)


def test_planted_near_duplicate_leaves_validation_and_another_document_stays():
    original = on_side(False, lambda seed: words(seed, 300))

    def near(seed):  # one word in fifty differs
        return " ".join(f"changed{seed}" if place % 50 == 25 else word for place, word in enumerate(original.split()))

    planted = on_side(True, near)
    different = on_side(True, lambda seed: words(5000 + seed, 300))
    split = dedup.split_documents(documents(original, planted, different), 0.3)
    assert [document.text for document in split.train] == [original]
    assert [document.text for document in split.val] == [different]
    assert (split.exact_removed, split.near_removed) == (0, 1)


def test_exact_duplicates_are_kept_once_whatever_their_case_and_spacing():
    for val in (False, True):
        text = on_side(val, lambda seed: words(seed, 30))
        split = dedup.split_documents(documents(text, text.upper(), text.replace(" ", "\n\n")), 0.3)
        assert (len(split.train), len(split.val), split.exact_removed) == ((0, 1, 2) if val else (1, 0, 2))


def test_no_validation_document_of_a_real_package_is_in_training():
    split = dedup.split_documents(read_package("networkx", module_documentation), 0.2)
    assert len(split.val) > 20
    train, val = ([document.text for document in side] for side in (split.train, split.val))
    assert not {" ".join(text.lower().split()) for text in train} & {" ".join(text.lower().split()) for text in val}
    assert max(naive_shared(val, train)) < dedup.MAX_SHARED


def test_side_of_a_document_does_not_depend_on_the_others():
    texts = [words(seed, 40) for seed in range(200)]
    alone = dedup.split_documents(documents(*texts), 0.2)
    joined = dedup.split_documents(documents(*(words(9000 + seed, 40) for seed in range(100)), *texts), 0.2)
    assert {document.text for document in alone.val} <= {document.text for document in joined.val}
    assert 20 <= len(alone.val) <= 60  # 40 expected, standard deviation 5.7


def test_a_corpus_of_which_no_hash_is_held_out_has_one_document_held_out():
    found = documents(*(words(seed, 30) for seed in range(30)))
    split = dedup.split_documents(found, val_fraction=1e-9)
    assert (len(split.train), len(split.val)) == (29, 1)
    assert split.val[0] == min(found, key=lambda document: dedup.text_key(document.text))
    assert dedup.split_documents(found[::-1], val_fraction=1e-9).val == split.val  # whatever the order
