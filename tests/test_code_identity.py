"""The code identity of a result: all modules of the sub-packages that it runs, without comments and docstrings."""

import ast

import pytest

from ddl import code_identity as module
from ddl.code_identity import code_identity
from ddl.layout import ROOT

FILES = {
    "ddl/errors.py": "class UserError(ValueError):\n    pass\n",
    "ddl/ops/__init__.py": "",
    "ddl/ops/rule.py": "def rewrite(x):\n    return 2 * x\n",
    "ddl/ops/unused.py": "WIDTH = 3\n",
    "ddl/model/__init__.py": "",
    "ddl/model/language.py": """\"\"\"A model.\"\"\"

from typing import TYPE_CHECKING

from ddl.errors import UserError

if TYPE_CHECKING:
    from ddl.ops import unused

SCALE = 0.5  # a constant


class Model:
    \"\"\"The model.\"\"\"

    def forward(self, x):
        \"\"\"One pass.\"\"\"
        from ddl.ops.rule import rewrite  # not needed before

        return rewrite(x) * SCALE
""",
    "notebooks/shows.py": "from ddl.model.language import Model\n\nsource(Model.forward)\n",
    "notebooks/runs.py": "from ddl.model.language import Model\n\nModel().forward(1)\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Create a small package; return a function that edits one of its files."""
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "ddl")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def change(name, old, new):
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new))
        module._read.cache_clear()

    module._read.cache_clear()
    yield change
    module._read.cache_clear()


def test_code_of_a_module_is_what_it_imports_in_the_rooms_wherever_the_import_stands(package):
    assert list(code_identity("ddl.model.language")) == [
        "ddl/model/__init__.py",
        "ddl/model/language.py",
        "ddl/ops/__init__.py",
        "ddl/ops/rule.py",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a constant", "# another remark"),
        ("  # not needed before", ""),
        ('"""A model."""\n', ""),
        ('"""One pass."""', '"""One pass\n        through it."""'),
        ("rewrite(x) * SCALE", "(\n            rewrite(x) * SCALE\n        )"),
    ],
)
def test_comments_docstrings_and_line_breaks_are_no_part_of_it(package, old, new):
    before = code_identity("ddl.model.language")
    package("ddl/model/language.py", old, new)
    assert code_identity("ddl.model.language") == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ddl/model/language.py", "0.5", "0.25"),
        ("ddl/model/language.py", "0.5", '"0.5"'),
        ("ddl/model/language.py", "rewrite(x) * SCALE", "rewrite(x) + SCALE"),
        ("ddl/model/language.py", "def forward(self, x)", "def forward(self, x, y=None)"),
        ("ddl/ops/rule.py", "2 * x", "x * 2"),
        ("ddl/ops/rule.py", "return 2 * x", "yield 2 * x"),
    ],
)
def test_a_constant_an_operator_or_a_signature_is_part_of_it(package, name, old, new):
    before = code_identity("ddl.model.language")
    package(name, old, new)
    after = code_identity("ddl.model.language")
    assert [path for path in before if after[path] != before[path]] == [name]


def test_modules_beside_the_rooms_are_no_part_of_it(package):
    before = code_identity("ddl.model.language")
    package("ddl/errors.py", "ValueError", "RuntimeError")
    assert code_identity("ddl.model.language") == before


def test_a_notebook_depends_on_the_text_of_what_it_shows_and_on_the_meaning_of_the_rest(package):
    shows, runs = code_identity("notebooks/shows.py"), code_identity("notebooks/runs.py")
    assert set(shows) - set(runs) == {"ddl/model/language.py:Model.forward"}
    package("ddl/model/language.py", "One pass.", "A single pass.")
    assert code_identity("notebooks/runs.py") == runs
    assert code_identity("notebooks/shows.py") != shows
    again = code_identity("notebooks/shows.py")
    package(
        "ddl/model/language.py", "The model.", "Some model."
    )  # docstring of the class, which the notebook does not show
    assert code_identity("notebooks/shows.py") == again


def test_training_runs_rules_and_kernels_and_no_reporting():
    found = code_identity("ddl.training.run")
    assert {"ddl/model/language_model.py", "ddl/ops/rewrite_triton.py", "ddl/data/sequences.py"} <= set(found)
    assert not [path for path in found if path.startswith("ddl/reporting/") or path.count("/") == 1]


def test_the_package_imports_by_absolute_names_which_are_those_that_are_followed():
    for path in (ROOT / "ddl").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], path
