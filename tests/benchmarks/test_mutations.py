"""The mutations in `benchmarks/mutations.py` match the code, and its runner reports what fails."""

import csv

import pytest

from benchmarks.mutations import (
    CONTROL,
    MUTATIONS,
    NOTEBOOKS,
    TESTS,
    Mutation,
    MutationError,
    Table,
    first_failing_notebook,
    first_failing_test,
    mutated,
    notebook_that_notices,
)
from ddl.layout import ROOT

KEPT = ROOT / "results" / "reference" / "mutations.csv"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file}: {mutation.breaks}")
def test_a_mutation_changes_one_place_and_leaves_valid_code(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    broken = mutated(mutation, text)
    assert broken != text
    compile(broken, mutation.file, "exec")


def test_the_control_changes_nothing():
    text = (ROOT / CONTROL.file).read_text(encoding="utf-8")
    assert mutated(CONTROL, text) == text


def test_no_two_mutations_have_the_same_name():
    names = [(mutation.file, mutation.breaks) for mutation in (CONTROL, *MUTATIONS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", ["x = 2", "x = 1\ny = 1"])
def test_a_mutation_that_does_not_fit_once_is_refused(text):
    with pytest.raises(MutationError, match=r"a\.py: expected .* once, found it"):
        mutated(Mutation("a.py", "one", "= 1", "= 2"), text)


def test_every_derivation_notebook_is_run():
    assert sorted(NOTEBOOKS) == sorted(path.stem for path in (ROOT / "notebooks").glob("0[1-7]*.py"))


def test_every_mutated_file_has_likely_tests_and_they_exist():
    assert {mutation.file for mutation in MUTATIONS} == set(TESTS)
    assert [path for paths in TESTS.values() for path in paths if not (ROOT / path).is_file()] == []


def write(folder, **texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)


def test_the_first_notebook_that_fails_is_named_with_its_error(tmp_path):
    write(tmp_path / "notebooks", passes="", fails="print('before')\nassert 1 > 2, 'off by 1'", later="1 / 0")
    names = ("passes", "fails", "later")
    assert first_failing_notebook(names, tmp_path) == ("fails", "AssertionError: off by 1")
    assert first_failing_notebook(["passes"], tmp_path) == ("none", "")


def test_what_never_ends_is_killed_and_named(tmp_path):
    forever = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    write(tmp_path / "notebooks", forever=forever)
    assert first_failing_notebook(["forever"], tmp_path, limit=1) == ("forever", "no end after 1 s")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("ddl/ops/rewrite_triton.py", "kernels need a GPU"),
        ("ddl/model/readers.py", "the derivations build no rival design"),
        ("ddl/reporting/statistics.py", "no derivation notebook imports this file"),
    ],
)
def test_a_file_that_no_notebook_runs_is_not_counted_as_unnoticed(tmp_path, file, reason):
    assert notebook_that_notices(Mutation(file, "", "", ""), tmp_path) == ("not run", reason)


def test_the_first_test_that_fails_is_named_with_its_error(tmp_path):
    fails = "import pytest\n@pytest.mark.parametrize('x', [1, 2])\ndef test_x(x):\n    assert x < 2, 'too large'\n"
    write(tmp_path / "tests", test_a="def test_a():\n    pass\n", test_b=fails, test_c="1 / 0")
    paths = [f"tests/test_{name}.py" for name in "abc"]
    name, error = first_failing_test(paths[:2], tmp_path, 60)
    assert (name, error) == ("tests/test_b.py::test_x[2]", "AssertionError: too large; assert 2 < 2")
    assert first_failing_test(paths[:1], tmp_path, 60) is None
    name, error = first_failing_test(paths[2:], tmp_path, 60)
    assert (name, error) == ("tests/test_c.py", "ZeroDivisionError: division by zero")


def test_a_table_keeps_the_order_of_the_list_and_knows_what_its_rows_depend_on(tmp_path):
    table, (first, second) = Table(tmp_path / "table.csv", "one"), MUTATIONS[:2]
    table.keep(second, notebook="05_gradient", test="none", seconds=3)
    table.keep(first, notebook="none", test="none", seconds=3)
    assert [row["breaks"] for row in table.rows().values()] == [first.breaks, second.breaks]
    assert table.has(first)
    assert not table.has(MUTATIONS[2])
    assert not Table(table.path, "other code").has(first)
    table.keep(first, notebook="05_gradient", test="none", seconds=4)
    assert [row["seconds"] for row in table.rows().values()] == ["4", "3"]


def test_the_kept_table_has_a_row_for_the_control_and_every_mutation():
    with open(KEPT, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["breaks"]) for row in rows] == [(m.file, m.breaks) for m in (CONTROL, *MUTATIONS)]
    assert (rows[0]["notebook"], rows[0]["test"]) == ("none", "none")
