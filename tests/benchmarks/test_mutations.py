"""The mutations in `benchmarks/mutations.py` match the code, and its runner reports which notebook fails."""

import csv

import pytest

from benchmarks.mutations import MUTATIONS, NOTEBOOKS, Mutation, MutationError, first_failure, mutated
from ddl.layout import ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file}: {mutation.breaks}")
def test_a_mutation_changes_one_place_and_leaves_valid_code(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    broken = mutated(mutation, text)
    assert broken != text
    compile(broken, mutation.file, "exec")


@pytest.mark.parametrize("text", ["x = 2", "x = 1\ny = 1"])
def test_a_mutation_that_does_not_fit_once_is_refused(text):
    with pytest.raises(MutationError, match=r"a\.py: expected .* once, found it"):
        mutated(Mutation("a.py", "one", "= 1", "= 2"), text)


def test_every_derivation_notebook_is_run():
    assert sorted(NOTEBOOKS) == sorted(path.stem for path in (ROOT / "notebooks").glob("0[1-7]*.py"))


def test_the_first_notebook_that_fails_is_named_with_its_error(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for name, line in {"passes": "", "fails": "assert 1 > 2, 'off by 1'", "later": "1 / 0"}.items():
        (tmp_path / "notebooks" / f"{name}.py").write_text(line)
    assert first_failure(tmp_path, ("passes", "fails", "later")) == ("fails", "AssertionError: off by 1")
    assert first_failure(tmp_path, ("passes",)) == ("none", "")


def test_the_kept_table_has_a_row_for_every_mutation():
    with open(ROOT / "results" / "reference" / "mutations.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["breaks"]) for row in rows] == [(m.file, m.breaks) for m in MUTATIONS]
    assert {row["dirty"] for row in rows} == {"False"}
